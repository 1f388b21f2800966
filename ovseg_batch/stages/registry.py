"""The table of stages, and the construction of plans from settings. A new stage has a line here and one in
`implementations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovseg_batch import lexicon
from ovseg_batch.config import load_config, presets
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.lexicon import Competition, LabelWords
from ovseg_batch.methods.vocabulary import COMMON_BACKGROUND, TEMPLATES, Vocabulary
from ovseg_batch.models import zoo
from ovseg_batch.settings import Config, EditConfig
from ovseg_batch.stages.base import STUFF, WORDS_ALONE, Stage, StagePlan, answer_stage, methods_of
from ovseg_batch.stages.detect.plan import ClassifyBoxesPlan, DetectPlan
from ovseg_batch.stages.edit.plan import EditPlan
from ovseg_batch.stages.merge.plan import MergePlan
from ovseg_batch.stages.plans import ClassifyPlan, DensePlan, EmbedPlan, EncodePlan, ProposePlan
from ovseg_batch.stages.refine.plan import FusedPlan, RefinePlan
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.stages.sam3.plan import Sam3Plan, SettlePlan, TokensPlan
from ovseg_batch.stages.words import Words
from ovseg_batch.wording import spelled

#: A run computes stages that do not need each other in this order. Under `dense.cache: none`, `fused` replaces `dense`
#: and `refine`. Where `method: detect` is computed, `classify-boxes` replaces `classify`.
PLANS: dict[str, type[StagePlan]] = {
    "propose": ProposePlan,
    "encode": EncodePlan,
    "dense": DensePlan,
    "refine": RefinePlan,
    "fused": FusedPlan,
    "embed": EmbedPlan,
    "classify": ClassifyPlan,
    "detect": DetectPlan,
    "classify-boxes": ClassifyBoxesPlan,
    "tokens": TokensPlan,
    "sam3": Sam3Plan,
    "settle": SettlePlan,
    "merge": MergePlan,
    "edit": EditPlan,
}


def stage_names(config: Config) -> tuple[str, ...]:
    """Return the stages of a run with these settings, in the order in which they run."""
    needs: dict[str, tuple[str, ...]] = {}
    waiting = [answer_stage(config) if config.edit.mode == "none" else "edit"]
    while waiting:
        name = waiting.pop()
        needs[name] = PLANS[_entry(config, name)].needs_of(config)
        waiting += needs[name]
    ordered: list[str] = []
    while len(ordered) < len(needs):
        able = (name for name in PLANS if name in needs and name not in ordered and {*needs[name]} <= {*ordered})
        ordered.append(next(able))
    return tuple(ordered)


def _entry(config: Config, name: str) -> str:
    """Return the key of a stage in the tables of plans and implementations."""
    if name == "classify" and "detect" in methods_of(config):
        return "classify-boxes"
    return "fused" if name == "refine" and config.dense.cache == "none" else name


def plans_of(config: Config) -> list[type[StagePlan]]:
    """Return the classes of the plans of a run with these settings, in the order in which they run."""
    return [PLANS[_entry(config, name)] for name in stage_names(config)]


@dataclass(frozen=True, slots=True)
class DescribedPreset:
    """The description of a preset: purpose, stages, cost per image, strengths, and source."""

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
    return ", ".join(filter(None, (plan.cost_of(config) for plan in plans_of(config))))


def competition(config: Config) -> Competition:
    """Return the words that compete with the labels, and those left out because of a label.

    Under `background: auto` they come from the lexicon. An embedded model has its other words instead. Methods that
    score each word alone have none.

    Raises:
        UsageError: `allow` or `compete` of a label that cannot have an effect.
    """
    if config.method == "hybrid":
        return competition(part_of(config, STUFF))
    decided = next((label.name for label in config.labels if label.allow or label.compete), None)
    if decided is not None and config.background != "auto":
        raise UsageError(f"Label {decided!r} has allow or compete, which act under background: auto alone.")
    if decided is not None and config.method in WORDS_ALONE:
        raise UsageError(
            f"Label {decided!r} has allow or compete. Under method: {config.method} no word competes with the labels."
        )
    alone = config.method == "detect" or (config.method in WORDS_ALONE and config.background == "auto")
    if config.background == "none" or alone:
        return Competition((), {})
    if config.background == "common":
        return Competition(COMMON_BACKGROUND, {})
    if config.background != "auto":
        return Competition(config.background, {})
    known = _known_words(config)
    if known is None:
        return lexicon.compete([LabelWords(one.name, one.words, one.allow, one.compete) for one in config.labels])
    taken = {word.lower() for label in config.labels for word in (*label.words, *label.allow)}
    return Competition(tuple(word for word in known if word.lower() not in taken), {})


def _known_words(config: Config) -> list[str] | None:
    """Return the words that the CLIP of these settings knows; None: any, or no stage encodes words."""
    if not any("clip" in plan.models_of(config) for plan in plans_of(config)):
        return None
    return zoo.known_labels(config.clip.model)


def make_vocabulary(config: Config) -> Vocabulary:
    """Build the vocabulary of the settings.

    Raises:
        UsageError: no labels, or words the embedded model was never taught.
    """
    if config.method == "hybrid":
        return make_vocabulary(part_of(config, STUFF))
    if not config.labels:
        raise UsageError(
            f'No labels. Name what to look for, as in {spelled("--labels", "labels=")} "car, road, sky" '
            "or `labels:` in the config."
        )
    labels = [(label.name, label.words, label.threshold) for label in config.labels]
    of_dataset = config.manifest.dataset is not None and isinstance(config.background, tuple)
    vocabulary = Vocabulary.build(labels, competition(config).words, config.background == "auto", of_dataset)
    known = _known_words(config)
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


def resolve(config: Config) -> Resolved:
    """Return the settings with the words and models that they name.

    Raises:
        UsageError: no labels, or words that an embedded model was never taught.
    """
    merged = methods_of(config) if config.method == "hybrid" else ()
    return Resolved(config, make_words(config), tuple(resolve(part_of(config, method)) for method in merged))


def part_of(config: Config, method: str) -> Config:
    """Return the settings of a run of one of the methods that `method: hybrid` merges, with the same labels."""
    alone = {"allow": (), "compete": ()} if method in WORDS_ALONE else {}  # act on the other method
    labels = tuple(label.model_copy(update=alone) for label in config.labels)
    return config.model_copy(update={"method": method, "labels": labels, "edit": EditConfig()})


def _run_of(run: Resolved, name: str) -> Resolved:
    """Return the run that a stage belongs to: one of the methods that are merged, or the run itself."""
    return next((part for part in run.parts if name in stage_names(part.config)), run)


def make_plan(run: Resolved, name: str) -> StagePlan:
    """Return the plan of a stage.

    Raises:
        UsageError: settings that name nothing that exists, or that do not go together.
        MissingModels: weights that are not on this machine.
    """
    return PLANS[_entry(run.config, name)](_run_of(run, name))


def make_stage(run: Resolved, name: str) -> Stage:
    """Return a stage that can be set up. This imports the model libraries. Raises as `make_plan`."""
    from ovseg_batch.stages.implementations import STAGES

    return STAGES[_entry(run.config, name)](_run_of(run, name))


def make_words(config: Config) -> Words:
    """Return the words that CLIP encodes under these settings."""
    definitions = {label.name: label.definition for label in config.labels if label.definition}
    return Words(make_vocabulary(config), _templates(config), definitions, config.dense.definition_weight)


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
