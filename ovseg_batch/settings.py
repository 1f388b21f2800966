"""Every setting there is, its type, its limits and its default: the tree that `config.py` fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


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


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Label(Section):
    """One class: its name in the output, the words CLIP is asked for, what it is in a sentence, a probability floor."""

    name: Annotated[str, Field(min_length=1)]
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    confusers: tuple[str, ...] = ()  # what the class is mistaken for (classify)
    threshold: Share = 0.0
    allow: tuple[str, ...] = ()  # words that may not compete with the label (background: auto)
    compete: tuple[str, ...] = ()  # words that compete with it in any case

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


Precision = Literal["auto", "fp32", "bf16", "fp16"]


class ClipConfig(Section):
    model: str = "demo"
    weights: str | None = None
    precision: Precision | None = None  # None: run.precision


class SamConfig(Section):
    model: str = "demo"
    weights: str | None = None
    precision: Precision | None = None  # None: run.precision
    cache: Literal["none", "embeddings"] = "none"  # embeddings: what any later prompt can be asked of


class DenseConfig(Section):
    attention: str = "csa"
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    window: Annotated[int, Field(ge=16)] | None = None  # None: the model's own image size
    stride: Annotated[int, Field(ge=8)] | Annotated[float, Field(gt=0, lt=1)] = 0.5  # pixels, or a share of the window
    short_side: Annotated[int, Field(ge=16)] | Literal["native"] | None = None  # None: 1.5 windows, as SCLIP's 336
    long_side: Annotated[int, Field(ge=16)] = 2048  # the longer side is kept at or under it in any case
    draft: bool = False  # JPEGs are decoded at a half, a quarter or an eighth where that is enough for CLIP
    views: Literal["plain", "itaclip"] = "plain"
    templates: str | tuple[str, ...] = "openai80"
    prompt_denoising: Share = 0.0  # classes that nowhere in an image reach this probability are ruled out; 0: none
    key_smoothing: Share = 0.0  # patches less sure than this take the scores of patches with similar keys; 0: none
    definition_weight: Share = 0.2  # of a label's definition against its words, where it has one
    logit_scale: Annotated[float, Field(gt=0)] = 40.0
    prob_threshold: Share = 0.0
    area_threshold: Share = 0.0
    cache: Literal["logits", "features", "none"] = "logits"  # features: what any later vocabulary can be asked of

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


class PresenceConfig(Section):
    """When a label counts as present in an image, under `background: auto`."""

    margin: Annotated[float, Field(ge=0)] = 3.0  # by which CLIP must prefer the label, at its own logit scale; 0: off
    share: Share = 0.3  # of the pixels of its class in a mask that must reach the margin
    alone: Share = 0.7  # the same where no mask of SAM2 agrees
    alone_area: Share = 0.004  # of the image, that such a piece must cover


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
    bank: str | None = None  # a memory bank: every segment is named anew with the help of regions that look like it
    bank_neighbours: Annotated[int, Field(ge=1, le=1000)] = 5
    bank_weight: Share = 0.7  # of the neighbours' scores against the segment's own


class AlphaConfig(Section):
    """How the edge of what is kept is drawn."""

    soft: bool = True  # False: the mask's own yes or no
    band: Annotated[int, Field(ge=1)] | None = None  # pixels on each side of it; None: 0.5 % of the longer side
    decontaminate: bool = True  # no old background shines through


class FillConfig(Section):
    """What `fill` puts in the place of what goes."""

    kind: Literal["colour", "blur", "gradient", "image"] = "colour"
    colour: str = "white"
    colour_below: str = "lightgrey"  # gradient
    blur: Annotated[float, Field(gt=0, le=1)] = 0.02  # sigma, as a share of the longer side (of a mask that goes)
    image: str | None = None

    @field_validator("colour", "colour_below")
    @classmethod
    def _is_colour(cls, colour: str) -> str:
        ImageColor.getrgb(colour)  # its ValueError says what is wrong
        return colour

    @model_validator(mode="after")
    def _names_its_image(self) -> FillConfig:
        if self.kind == "image" and not self.image:
            raise ValueError("needs fill.image, the picture to put there")
        return self


class CropConfig(Section):
    margin: Annotated[float, Field(ge=0, le=4)] = 0.0  # on each side, as a share of the box's longer side
    square: bool = False


class EditConfig(Section):
    mode: Literal["none", "cutout", "fill", "mask", "crop", "erase", "remove", "replace", "style"] = "none"
    keep: tuple[str, ...] = ()  # labels that stay, while everything else is changed …
    drop: tuple[str, ...] = ()  # … or labels that are changed. Neither: all labels, kept or changed as the mode goes
    min_score: Share = 0.0  # masks that are less sure are passed over
    apart: bool = False  # cutout, mask, crop: a file for every mask
    on_empty: Literal["copy", "skip", "fail"] = "copy"  # images without a mask
    dilation: Annotated[int, Field(ge=0)] = 8  # pixels by which what goes is widened
    feather: Annotated[float, Field(ge=0)] = 4.0  # pixels inwards from there over which the new picture fades in
    shape: Literal["mask", "box"] = "mask"  # a box leaves room for a thing of another shape
    alpha: AlphaConfig = AlphaConfig()
    fill: FillConfig = FillConfig()
    crop: CropConfig = CropConfig()
    format: Literal["auto", "png", "webp", "jpeg", "tiff"] = "auto"
    quality: Annotated[int, Field(ge=1, le=100)] | None = None  # None: lossless, and 95 for JPEG
    compression: Annotated[int, Field(ge=0, le=9)] = 6  # of PNG
    metadata: Literal["keep", "colour", "none"] = "keep"  # colour: the colour profile without EXIF
    prompt: str = ""  # {label} stands for the mask's label
    prompts: dict[str, str] = {}  # label → prompt
    negative_prompt: str = ""
    seed: int = 0
    together: bool = False  # the generator paints all masks of a label at once, not one after the other

    @field_validator("keep", "drop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _words(value)

    @model_validator(mode="after")
    def _one_way(self) -> EditConfig:
        if self.keep and self.drop:
            raise ValueError("has both keep and drop; name either what stays or what goes")
        return self


class InpaintConfig(Section):
    """The generator of remove, replace and style: a pipeline of diffusers."""

    model: str = "demo"  # a name from `models list`, a folder, or a hub id that has been fetched
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None  # None, here and below: what goes with the model
    guidance: Annotated[float, Field(ge=0)] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None  # None: 1, and 0.6 for style
    size: Annotated[int, Field(ge=64, multiple_of=8)] | None = None  # None: what the model was trained at
    context: Annotated[float, Field(ge=0, le=4)] = 0.3  # around the mask's box, as a share of its longer side
    batch_size: Annotated[int, Field(ge=1)] = 1  # above 1 the last bits of a picture may depend on its neighbours
    offload: Literal["none", "model", "sequential"] = "none"  # for GPUs that do not hold the whole model
    attention_slicing: bool = False


class RunConfig(Section):
    """How fast, not what: nothing here but `precision` enters a fingerprint."""

    engine: Literal["local", "ray"] = "local"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None  # None: one a GPU, or one; 0: no process of its own
    threads: Annotated[int, Field(ge=1)] | None = None  # of PyTorch on a CPU, in every worker; None: as many as cores
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0  # what Ray sets aside for one
    gpus_per_worker: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}  # stage → share; what is not named takes one
    batch_size: Annotated[int, Field(ge=1)] = 32
    point_chunk: Annotated[int, Field(ge=1)] | None = None  # prompts of a SAM2 call; None: 8 on a CPU, 64 on a GPU
    stall_minutes: Annotated[float, Field(gt=0)] | None = None  # a worker without an image in that time is killed
    precision: Precision = "auto"  # GPU: bf16, or fp16 before Ampere; CPU: fp32, or with AMX bf16 for full-size models
    decode_threads: Annotated[int, Field(ge=1)] = 2
    decode_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    max_file_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    allow_remote: bool = False  # fetch images that are behind URLs
    remote_tries: Annotated[int, Field(ge=1)] = 4
    remote_timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds for a try
    remote_private: bool = False  # let URLs lead into private networks
    max_failure_rate: Share = 1.0
    metrics_file: str | None = None  # kept up to date for Prometheus' textfile collector


class Config(Section):
    about: About = About()
    method: Literal["dense", "proposals"] = "dense"  # a class for every pixel first, or masks first
    labels: tuple[Label, ...] = ()
    background: tuple[str, ...] | Literal["auto", "none", "common"] = "auto"  # auto: a vocabulary of everything else
    manifest: ManifestConfig = ManifestConfig()
    clip: ClipConfig = ClipConfig()
    sam: SamConfig = SamConfig()
    dense: DenseConfig = DenseConfig()
    propose: ProposeConfig = ProposeConfig()
    presence: PresenceConfig = PresenceConfig()
    refine: RefineConfig = RefineConfig()
    classify: ClassifyConfig = ClassifyConfig()
    edit: EditConfig = EditConfig()
    inpaint: InpaintConfig = InpaintConfig()
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
