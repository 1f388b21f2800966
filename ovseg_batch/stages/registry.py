"""The stages, and how settings become a plan of one. A new stage has a line here and one in `implementations`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ovseg_batch import lexicon
from ovseg_batch.config import load_config, presets
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.lexicon import Competition, LabelWords
from ovseg_batch.methods.vocabulary import COMMON_BACKGROUND, TEMPLATES, Vocabulary
from ovseg_batch.models import zoo
from ovseg_batch.models.pipelines import PIPELINES
from ovseg_batch.settings import ATTENTIONS, REGION_LIMITED, Config
from ovseg_batch.stages.base import Stage, StagePlan
from ovseg_batch.stages.edit.plan import GENERATED, EditPlan
from ovseg_batch.stages.plans import (
    ASKING,
    VIEWS,
    ClassifyPlan,
    DensePlan,
    EmbedPlan,
    EncodePlan,
    FusedPlan,
    ProposePlan,
    RefinePlan,
    window_and_stride,
)
from ovseg_batch.stages.words import Words
from ovseg_batch.wording import spelled

T = TypeVar("T")

PLANS: dict[str, Callable[..., StagePlan]] = {
    "propose": ProposePlan,
    "encode": EncodePlan,
    "dense": DensePlan,
    "refine": RefinePlan,
    "fused": FusedPlan,
    "embed": EmbedPlan,
    "classify": ClassifyPlan,
    "edit": EditPlan,
}


def stage_names(config: Config) -> tuple[str, ...]:
    """The stages of a run with these settings, in the order they run."""
    edits = () if config.edit.mode == "none" else ("edit",)
    if config.method == "proposals":
        return "propose", "embed", "classify", *edits
    proposes = config.refine.method == "automatic" or config.dense.attention == REGION_LIMITED
    encodes = config.refine.method in ASKING and config.sam.cache == "embeddings"
    first = (*(("propose",) if proposes else ()), *(("encode",) if encodes else ()))
    return *first, *(() if config.dense.cache == "none" else ("dense",)), "refine", *edits


@dataclass(frozen=True, slots=True)
class DescribedPreset:
    """A preset in words: what it does, its stages, what an image costs, what it is good at, and its source."""

    name: str
    what: str
    stages: tuple[str, ...]
    cost: str
    good_at: str
    source: str


def describe_presets() -> list[DescribedPreset]:
    """Describe every preset of the package."""
    described = []
    for name, file in presets().items():
        config = load_config(file, environment={})
        about, stages = config.about, stage_names(config)
        described.append(DescribedPreset(name, about.what, stages, _cost(config), about.good_at, about.source))
    return described


def _cost(config: Config) -> str:
    """Describe what the models compute for one image."""
    names = stage_names(config)
    parts = []
    if config.method == "dense":
        views = VIEWS[config.dense.views]
        parts.append("CLIP once a window" if views == 1 else f"CLIP {views} times a window")
    if "embed" in names:
        tokens = config.classify.scorer == "mask-tokens"
        parts.append("CLIP once" if tokens else f"CLIP {len(config.classify.scales)} × for each mask")
    if "propose" in names:
        parts.append(f"SAM2's encoder and {config.propose.points_per_side**2} prompts")
    if "refine" in names and config.refine.method in ASKING:
        parts.append(f"SAM2's encoder and one prompt for each piece of the map, {config.refine.max_points} at most")
    if config.edit.mode in GENERATED:
        steps = config.inpaint.steps or PIPELINES[config.inpaint.model].usual.steps
        parts.append(f"{steps} steps of the generator for each mask")
    return ", ".join(parts)


def competition(config: Config) -> Competition:
    """Return the words that compete with the labels, and those left out because of a label.

    Under `background: auto` they come from the lexicon. An embedded model has its other words instead.

    Raises:
        UsageError: `allow` or `compete` of a label that cannot have an effect.
    """
    decided = next((label.name for label in config.labels if label.allow or label.compete), None)
    if decided is not None and config.background != "auto":
        raise UsageError(f"Label {decided!r} has allow or compete, which act under background: auto alone.")
    if config.background == "none":
        return Competition((), {})
    if config.background == "common":
        return Competition(COMMON_BACKGROUND, {})
    if config.background != "auto":
        return Competition(config.background, {})
    known = zoo.known_labels(config.clip.model)
    if known is None:
        return lexicon.compete([LabelWords(one.name, one.words, one.allow, one.compete) for one in config.labels])
    taken = {word.lower() for label in config.labels for word in (*label.words, *label.allow)}
    return Competition(tuple(word for word in known if word.lower() not in taken), {})


def make_vocabulary(config: Config) -> Vocabulary:
    """The classes and queries the config asks for.

    Raises:
        UsageError: no labels, or words the embedded model was never taught.
    """
    if not config.labels:
        raise UsageError(
            f'No labels. Name what to look for, as in {spelled("--labels", "labels=")} "car, road, sky" '
            "or `labels:` in the config."
        )
    labels = [(label.name, label.words, label.threshold) for label in config.labels]
    vocabulary = Vocabulary.build(labels, competition(config).words, pooled=config.background == "auto")
    known = zoo.known_labels(config.clip.model)
    if known is not None:
        others = [word for label in config.labels for word in (*label.confusers, *label.allow, *label.compete)]
        for query in [*vocabulary.queries, *others, *config.classify.background]:
            if query.lower() not in known:
                raise UsageError(
                    f"The embedded model {config.clip.model!r} does not know the label {query!r}."
                    f"{nearest(query, known)} It knows: {', '.join(known)}. "
                    "For other words choose real weights with clip.model (see `ovseg-batch models list`)."
                )
    return vocabulary


def make_plan(config: Config, name: str) -> StagePlan:
    """Return what a stage reads, keeps and depends on under these settings.

    Raises:
        UsageError: settings that name nothing that exists.
        OvsegError: weights that are not on this machine.
    """
    return _make(config, name, PLANS)


def make_stage(config: Config, name: str) -> Stage:
    """Return a stage that can be set up. This imports the model libraries.

    Raises:
        UsageError: settings that name nothing that exists.
        OvsegError: weights that are not on this machine.
    """
    from ovseg_batch.stages.implementations import STAGES

    return _make(config, name, STAGES)


def _make(config: Config, name: str, classes: Mapping[str, Callable[..., T]]) -> T:
    """Return an instance of a stage's class, which takes the same arguments as its plan's class."""
    _check(config)
    words = make_words(config)
    match name:
        case "dense" | "classify":
            return classes[name](config, words)
        case "edit":
            return classes[name](config, "classify" if config.method == "proposals" else "refine")
        case "refine":
            refine = classes[name](config, words, *window_and_stride(config))
            return classes["fused"](classes["dense"](config, words), refine) if config.dense.cache == "none" else refine
        case _:
            return classes[name](config)


def make_words(config: Config) -> Words:
    """Return the words that CLIP encodes under these settings."""
    definitions = {label.name: label.definition for label in config.labels if label.definition}
    return Words(make_vocabulary(config), _templates(config), definitions, config.dense.definition_weight)


def _check(config: Config) -> None:
    """Refuse settings that name nothing there is, or that do not go together."""
    dense = config.dense
    if dense.attention not in ATTENTIONS:
        raise UsageError(
            f"dense.attention: there is no variant {dense.attention!r}.{nearest(dense.attention, ATTENTIONS)} "
            f"Variants: {', '.join(ATTENTIONS)}."
        )
    if dense.key_smoothing and dense.views != "plain":
        raise UsageError("dense.key_smoothing goes with dense.views: plain alone.")
    if dense.attention == REGION_LIMITED and (dense.key_smoothing or dense.views != "plain" or dense.layers != (1.0,)):
        raise UsageError(
            f"dense.attention: {REGION_LIMITED} goes with dense.views: plain, dense.layers: [1.0] and no key_smoothing."
        )
    if dense.cache == "features" and (dense.key_smoothing or dense.views != "plain"):
        raise UsageError(
            "dense.cache: features goes with dense.views: plain and no key_smoothing, which need more than features."
        )
    if config.refine.bank and dense.cache != "features":
        raise UsageError("refine.bank compares features: it needs dense.cache: features.")
    if config.refine.bank and not Path(config.refine.bank).is_file():
        raise UsageError(
            f"refine.bank: there is no file {config.refine.bank}. `ovseg-batch bank build WORKDIR -o FILE` makes one."
        )
    if config.sam.cache == "embeddings" and config.refine.tile is not None:
        raise UsageError(
            "sam.cache: embeddings keeps one for the whole image, and refine.tile looks at parts of it. Leave one out."
        )


def _templates(config: Config) -> tuple[str, ...]:
    chosen = config.dense.templates
    if isinstance(chosen, str):
        if chosen not in TEMPLATES:
            raise UsageError(
                f"dense.templates: there is no set {chosen!r}.{nearest(chosen, TEMPLATES)} "
                f"Sets: {', '.join(TEMPLATES)}; or give a list of phrases with {{}} in the word's place."
            )
        return TEMPLATES[chosen]
    for template in chosen:
        if template.count("{}") != 1:
            raise UsageError(f"dense.templates: {template!r} needs exactly one {{}} where the word goes.")
    return chosen
