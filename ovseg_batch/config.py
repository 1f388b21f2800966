"""The settings of a run: YAML, environment, `--set` and flags merged into one checked, immutable tree.

Precedence: flags and `--set` > `OVSEG_<SECTION>__<KEY>` > file > defaults. Unknown keys are errors that name the
nearest valid one. Which keys decide a stage's result is the stage's own knowledge (`Stage.inputs`), not this module's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ovseg_batch import datasets
from ovseg_batch.errors import UsageError, nearest

ENVIRONMENT_PREFIX = "OVSEG_"
RESERVED_ENVIRONMENT = {"OVSEG_CACHE", "OVSEG_CHECKPOINTS", "OVSEG_FAILPOINTS"}

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Label(Section):
    """One class: its name in the output, the words CLIP is asked for, what it is in a sentence, a probability floor."""

    name: Annotated[str, Field(min_length=1)]
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    confusers: tuple[str, ...] = ()  # what the class is mistaken for (classify)
    threshold: Share = 0.0

    @property
    def words(self) -> tuple[str, ...]:
        return self.synonyms or (self.name,)


class About(Section):
    """What a config is for, in words; decides nothing."""

    what: str = ""
    source: str = ""
    good_at: str = ""


class ManifestConfig(Section):
    shard_rows: Annotated[int, Field(ge=1, le=100_000)] = 256


class ClipConfig(Section):
    model: str = "demo"
    weights: str | None = None


class SamConfig(Section):
    model: str = "demo"
    weights: str | None = None


class DenseConfig(Section):
    attention: str = "csa"
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    window: Annotated[int, Field(ge=16)] | None = None  # None: the model's own image size
    stride: Annotated[int, Field(ge=8)] | Annotated[float, Field(gt=0, lt=1)] = 0.5  # pixels, or a share of the window
    short_side: Annotated[int, Field(ge=16)] | Literal["native"] | None = None  # None: 1.5 windows, as SCLIP's 336
    long_side: Annotated[int, Field(ge=16)] = 2048  # the longer side is kept at or under it in any case
    views: Literal["plain", "itaclip"] = "plain"
    templates: str | tuple[str, ...] = "openai80"
    prompt_denoising: Share = 0.0  # classes that nowhere in an image reach this probability are ruled out; 0: none
    key_smoothing: Share = 0.0  # patches less sure than this take the scores of patches with similar keys; 0: none
    definition_weight: Share = 0.2  # of a label's definition against its words, where it has one
    logit_scale: Annotated[float, Field(gt=0)] = 40.0
    prob_threshold: Share = 0.0
    area_threshold: Share = 0.0
    cache: Literal["logits"] = "logits"

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, layers: tuple[float, ...]) -> tuple[float, ...]:
        if not layers:
            raise ValueError("names no layer; [1.0] is the last one")
        return layers


class ProposeConfig(Section):
    points_per_side: Annotated[int, Field(ge=1, le=256)] = 32
    predicted_iou: Share = 0.88
    stability: Share = 0.95
    nms: Share = 0.7


class ClassifyConfig(Section):
    scorer: Literal["crops", "mask-tokens"] = "crops"
    tuned: str | None = None  # mask-tokens: a file of query projections in the layout of MasQCLIP's checkpoints
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = (1.0, 1.5, 16 / 7)  # crops, of the model's own side
    weights: tuple[Share, ...] = (0.2, 0.5, 0.3)  # of these scales
    outside: Share = 0.0  # crops: what remains of the picture outside the mask
    background: tuple[str, ...] = ()  # words of nothing in particular, whose likeness is taken off
    background_weight: Share = 0.3
    confuser_weight: Share = 0.3
    denoising: Share | None = None  # a class's best mask must reach the median of the classes' bests, and this
    temperature: Annotated[float, Field(gt=0)] = 100.0  # multiplies likenesses before the softmax
    size_penalty: bool = False  # less belief in masks of more than 15 % of the image
    top_k: Annotated[int, Field(ge=1)] | Literal["all", "adaptive"] = "all"
    threshold_large: Share = 0.15
    threshold_small: Share = 0.20
    large: Share = 0.05  # share of the image from which a mask is large
    nms: Share = 0.7
    min_area: Share = 0.001

    @model_validator(mode="after")
    def _one_weight_a_scale(self) -> ClassifyConfig:
        if len(self.scales) != len(self.weights):
            raise ValueError(f"has {len(self.scales)} scales and {len(self.weights)} weights")
        return self


class RefineConfig(Section):
    method: Literal["prompted", "guided", "trident", "automatic", "none"] = "prompted"
    pamr: Annotated[int, Field(ge=0)] = 0  # iterations of pixel-adaptive refinement of the dense scores
    vote: Share | Literal["soft"] = 0.6  # share of a mask that must be of its class; 0: its most frequent class
    tile: Annotated[int, Field(ge=128)] | None = None  # pixels that SAM2 looks at around an object; None: all of them
    output: Literal["instances", "semantic"] = "instances"
    fallback: Literal["dense", "none"] = "dense"
    point: Literal["peak", "centroid"] = "peak"
    min_distance: Annotated[float, Field(ge=0)] = 20.0
    min_area: Share = 0.001
    min_confidence: Share = 0.7  # guided: what the dense map must be sure of
    min_region: Annotated[int, Field(ge=1)] = 100  # guided, trident: pixels of a component that is asked for
    predicted_iou: Share = 0.8  # trident: masks that SAM2 rates no better leave the dense map as it is
    same_object: Share = 0.8  # guided: IoU from which two masks of a class show the same object
    max_points: Annotated[int, Field(ge=1)] = 256


class RunConfig(Section):
    """How fast, not what: nothing here but `precision` enters a fingerprint."""

    engine: Literal["local", "ray"] = "local"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None  # None: one a GPU, or one; 0: no process of its own
    threads: Annotated[int, Field(ge=1)] | None = None  # of PyTorch on a CPU, in every worker; None: as many as cores
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0  # what Ray sets aside for one
    gpus_per_worker: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}  # stage → share; what is not named takes one
    batch_size: Annotated[int, Field(ge=1)] = 32
    point_chunk: Annotated[int, Field(ge=1)] | None = None  # None: small on a CPU, large on a GPU
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    decode_threads: Annotated[int, Field(ge=1)] = 2
    decode_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    max_file_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    allow_remote: bool = False  # fetch images that are behind URLs
    remote_tries: Annotated[int, Field(ge=1)] = 4
    remote_timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds for a try
    remote_private: bool = False  # let URLs lead into private networks
    max_failure_rate: Share = 1.0


class Config(Section):
    about: About = About()
    method: Literal["dense", "proposals"] = "dense"  # a class for every pixel first, or masks first
    labels: tuple[Label, ...] = ()
    background: tuple[str, ...] | Literal["common"] = ()
    manifest: ManifestConfig = ManifestConfig()
    clip: ClipConfig = ClipConfig()
    sam: SamConfig = SamConfig()
    dense: DenseConfig = DenseConfig()
    propose: ProposeConfig = ProposeConfig()
    refine: RefineConfig = RefineConfig()
    classify: ClassifyConfig = ClassifyConfig()
    run: RunConfig = RunConfig()

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, value: Any) -> Any:
        return parse_labels(value)

    @field_validator("labels")
    @classmethod
    def _names_differ(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        names = [label.name for label in labels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names {twice[0]!r} twice; put its other words behind a colon: '{twice[0]}: word, word'")
        return labels


def parse_labels(value: Any) -> Any:
    """Labels as people write them (`dataset:voc21` is `load_config`'s, for it brings more than labels).

    `"car, road, sky"`; with synonyms `"person: person, people; sky"` (`;` or newlines between labels as soon as one
    has a colon); a list of such strings or of mappings `{name, synonyms, threshold}`; a mapping of name → words.
    """
    if isinstance(value, str):
        entries = value.replace("\n", ";").split(";") if any(c in value for c in ":;\n") else value.split(",")
        return tuple(_parse_label(entry) for entry in entries if entry.strip())
    if isinstance(value, Mapping):
        return tuple(
            {"name": name, **words} if isinstance(words, Mapping) else {"name": name, "synonyms": _words(words)}
            for name, words in value.items()
        )
    if isinstance(value, Sequence):
        return tuple(_parse_label(entry) if isinstance(entry, str) else entry for entry in value)
    return value


def _parse_label(entry: str) -> dict[str, Any]:
    name, colon, words = entry.partition(":")
    if colon and "," in name:
        example = "car; person: person, people"
        raise ValueError(f"put ';' between labels where one has synonyms, as in {example!r}")
    return {"name": name.strip(), "synonyms": _words(words)}


def _words(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(part).strip() for part in parts if str(part).strip())


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Merge every source of settings and check the result.

    Args:
        file: a YAML file, or the name of a preset, or None.
        overrides: `section.key=value` strings, the value read as YAML.
        flags: dotted keys → values from the command line; None values are left out.
        environment: defaults to the process's.

    Raises:
        UsageError: an unreadable file, an unknown key (with the nearest valid one), or a value out of range.
    """
    file = _preset_or_file(file) if file else None
    tree: dict[str, Any] = _read_yaml(file) if file else {}
    origin = str(file) if file else "config"
    _check_keys(tree, Config, origin)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_ENVIRONMENT:
            _assign(tree, name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), _scalar(text), f"${name}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override!r} has no value. Write --set section.key=value.")
        _assign(tree, key.strip().split("."), _scalar(text), f"--set {override}")
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key.split("."), value, key)
    labels = tree.get("labels")
    if isinstance(labels, str) and labels.strip().startswith(datasets.PREFIX):
        _of_dataset(tree, datasets.load(labels.strip().removeprefix(datasets.PREFIX)))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def _of_dataset(tree: dict[str, Any], dataset: datasets.Dataset) -> None:
    """The classes of a data set for `labels`, and its background and thresholds where nothing else was said."""
    tree["labels"] = dataset.labels()
    if dataset.background:
        tree.setdefault("background", list(dataset.background))
    for key, value in dataset.settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {}).setdefault(name, value)


def dump_config(config: Config) -> str:
    """The resolved settings as YAML that `load_config` reads back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def presets() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    package = Path(__file__).resolve().parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def _preset_or_file(file: Path) -> Path:
    """A file wins over a preset of its name."""
    return file if file.exists() else presets().get(str(file), file)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = nearest(str(file), presets())
        raise UsageError(f"There is no config file {file}, nor a preset of that name.{hint}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the config file {file}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"The config file {file} is a {type(tree).__name__}; it must be a mapping of sections.")
    return {key: value for key, value in tree.items() if value is not None}


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check_keys(tree: Mapping[str, Any], model: type[BaseModel], origin: str, path: str = "") -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise UsageError(
                f"{origin}: unknown key '{path}{key}'.{nearest(str(key), model.model_fields)} "
                f"Valid here: {', '.join(model.model_fields)}."
            )
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and value is not None:
            if not isinstance(value, Mapping):
                raise UsageError(f"{origin}: '{path}{key}' is a section with keys, not {value!r}.")
            _check_keys(value, kind, origin, f"{path}{key}.")


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    nested: Any = value
    for key in reversed(path):
        nested = {key: nested}
    _check_keys(nested, Config, origin)
    branch = tree
    for key in path[:-1]:
        branch = branch.setdefault(key, {})
    branch[path[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        given = f" (given: {problem['input']!r})" if problem["type"] != "missing" else ""
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "The settings do not make sense:\n  " + "\n  ".join(dict.fromkeys(lines))
