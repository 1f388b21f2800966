"""Every setting, its type, its limits and its default: the tree that `config.py` fills."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import Field, field_validator, model_validator

from ovseg_batch.datasets import protocols
from ovseg_batch.settings.attentions import Attention
from ovseg_batch.settings.detection import DetectConfig, OwlConfig
from ovseg_batch.settings.labels import parse_labels, split_names, split_words
from ovseg_batch.settings.merging import MergeConfig
from ovseg_batch.settings.models import ClipConfig, DinoConfig, InpaintConfig, Sam3Config, SamConfig
from ovseg_batch.settings.running import ManifestConfig, RunConfig
from ovseg_batch.settings.section import PathText, Section, Share


class Label(Section):
    """One class, as an entry of the list `labels`."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the class in the outputs."""
    synonyms: tuple[str, ...] = ()
    """Words that CLIP searches for. Empty: the name."""
    definition: str = ""
    """What the class is, in a sentence. `dense.definition_weight` mixes it into the words."""
    confusers: tuple[str, ...] = ()
    """Words that the class is often mistaken for. Their similarity is subtracted (`classify.confuser_weight`)."""
    threshold: Share = 0.0
    """Lowest probability of a pixel or a mask of this class."""
    allow: tuple[str, ...] = ()
    """Words that do not compete with the label under `background: auto`."""
    compete: tuple[str, ...] = ()
    """Words that compete with the label in any case under `background: auto`."""
    kind: Literal["thing", "stuff", "any"] = "any"
    """`stuff` has no single objects: panoptic exports give it one segment per image. `thing` and `any` get one segment
    per mask. `method: hybrid` takes objects and stuff from different methods (docs/methods.md)."""

    @property
    def words(self) -> tuple[str, ...]:
        return self.synonyms or (self.name,)


class About(Section):
    """The purpose of a config, in words. It has no effect."""

    what: str = ""
    """What the config computes."""
    source: str = ""
    """The publication or the code that it follows."""
    good_at: str = ""
    """What the config is good at."""


class TridentConfig(Section):
    """The aggregation over the whole image under `dense.attention: trident`."""

    cosine: Annotated[float, Field(ge=0)] = 1.2
    """A patch attends to patches whose values in SAM have more than this many times its mean cosine."""
    raise_negative: bool = False
    """Replace a negative threshold of that cosine by 0.6."""
    halves: bool = False
    """Give SAM the left and the right half of an image. false: the whole image."""


class DenseConfig(Section):
    """The dense map: CLIP's class for every pixel."""

    attention: Attention = "csa"
    """Variant of CLIP's last attention (docs/methods.md)."""
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    """Depths of the blocks whose features are averaged, as shares of all blocks. 1.0 is the last block."""
    window: Annotated[int, Field(ge=16)] | None = None
    """Side in pixels of the square windows that CLIP sees. null: the image size of the model."""
    stride: Annotated[int, Field(ge=8)] | Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Distance of neighbouring windows: pixels, or a share of the window."""
    short_side: Annotated[int, Field(ge=16)] | Literal["native"] | None = None
    """Pixels to which the shorter side of an image is resized. `native` keeps its size. null: 1.5 windows."""
    long_side: Annotated[int, Field(ge=16)] = 2048
    """Largest length in pixels of the longer side after resizing."""
    draft: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is enough for CLIP."""
    views: Literal["plain", "itaclip"] = "plain"
    """Views of each window whose scores are mixed: the window itself, or the five of ITACLIP."""
    view_weight: Share = 0.75
    """Weight of the views that are not flipped, against the two flipped views of `dense.views: itaclip`."""
    templates: str | tuple[str, ...] = "openai80"
    """Phrases around each word: a set by name, or a list of phrases with {} for the word."""
    prompt_denoising: Share = 0.0
    """Exclude classes that reach this probability in no pixel of an image. 0: exclude none."""
    key_smoothing: Share = 0.0
    """Patches below this probability get the scores of patches with similar keys. 0: no patch."""
    definition_weight: Share = 0.2
    """Weight of a label's definition against its words."""
    logit_scale: Annotated[float, Field(gt=0)] = 40.0
    """Factor of the cosine similarities before the softmax."""
    prob_threshold: Share = 0.0
    """Pixels with a lower probability become background, or get no class where there is no background."""
    area_threshold: Share = 0.0
    """Classes with a smaller share of an image's labelled pixels are removed from its dense map."""
    trident: TridentConfig = TridentConfig()
    cache: Literal["logits", "features", "none"] = "logits"
    """Stored results of every image: scores of the words, features (for any later words), or nothing."""

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, layers: tuple[float, ...]) -> tuple[float, ...]:
        if not layers:
            raise ValueError("names no layer; [1.0] is the last one")
        return layers


class ProposeConfig(Section):
    """SAM2's automatic masks."""

    points_per_side: Annotated[int, Field(ge=1, le=256)] = 32
    """Points per side of the grid at which SAM2 is prompted."""
    predicted_iou: Share = 0.88
    """Masks that SAM2 rates lower are dropped."""
    stability: Share = 0.95
    """Masks whose stability is lower are dropped."""
    nms: Share = 0.7
    """Of two masks whose boxes overlap by more than this IoU, the lower rated one is dropped."""
    multimask: bool = True
    """SAM2 draws three masks at each point, or one."""
    masks: PathText | None = None
    """A folder of region maps that take the place of SAM2's masks: `NAME.npz` with the array `instance_mask` for the
    image NAME, as CorrCLIP's authors publish them. null: SAM2 draws the masks."""


class ClassifyConfig(Section):
    """The labels of masks under `method: proposals`."""

    scorer: Literal["crops", "mask-tokens"] = "crops"
    """How CLIP sees a mask: as crops of the image, or as a class token that attends to the mask's patches."""
    tuned: PathText | None = None
    """A file of query projections in the layout of MasQCLIP's checkpoints. null: CLIP's own."""
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = (1.0, 1.5, 16 / 7)
    """Sizes of the crops, as multiples of the model's image size."""
    weights: tuple[Share, ...] = (0.2, 0.5, 0.3)
    """Weights of the crops' scales, one for each."""
    outside: Share = 0.0
    """Share of the image that remains visible in a crop outside of the mask. 0 isolates the mask."""
    background: tuple[str, ...] = ()
    """Words for unspecific content. Their similarity is subtracted (`classify.background_weight`)."""
    background_weight: Share = 0.3
    """Factor of the similarity to the background words that is subtracted."""
    confuser_weight: Share = 0.3
    """Factor of the similarity to a label's confusers that is subtracted."""
    denoising: Share | None = None
    """A class is ruled out where its best mask is below this, or below the median of all classes' best masks.
    null: none is."""
    temperature: Annotated[float, Field(gt=0)] = 100.0
    """Factor of the similarities before the softmax."""
    size_penalty: bool = False
    """Lower the scores of masks that cover more than 15 % of the image."""
    top_k: Annotated[int, Field(ge=1)] | Literal["all", "adaptive"] = "all"
    """Masks to keep per class: a number, all above the threshold, or a number inferred from the word."""
    threshold_large: Share = 0.15
    """Lowest probability of a large mask."""
    threshold_small: Share = 0.20
    """Lowest probability of a small mask."""
    large: Share = 0.05
    """Share of the image from which a mask counts as large."""
    nms: Share = 0.7
    """Of two masks of a class that overlap by more than this IoU, the one with the lower score is dropped."""
    min_area: Share = 0.001
    """Masks that cover a smaller share of the image are dropped."""

    @model_validator(mode="after")
    def _one_weight_a_scale(self) -> ClassifyConfig:
        if len(self.scales) != len(self.weights):
            counts = f"{len(self.scales)} scales and {len(self.weights)} weights"
            raise ValueError(f"has {counts}; give one weight for each scale")
        return self


class PresenceConfig(Section):
    """The rule by which a label counts as present in an image, under `background: auto`."""

    margin: Annotated[float, Field(ge=0)] = 3.0
    """CLIP must prefer a label to the competing words by this much, at its own logit scale. 0: no such rule."""
    share: Share = 0.3
    """Share of a mask's pixels of its class that must reach the margin."""
    alone: Share = 0.7
    """The same for a piece of the dense map that no mask of SAM2 covers."""
    alone_area: Share = 0.004
    """Smallest share of the image that such a piece must cover."""


class RefineConfig(Section):
    """The outlines of objects in the dense map."""

    method: Literal["prompted", "guided", "trident", "trident-map", "automatic", "regions", "none"] = "prompted"
    """How SAM2 draws the outlines (docs/methods.md). `regions` gives each region of `propose` its most frequent class,
    which may be the background. `none` keeps the dense map."""
    pamr: Annotated[int, Field(ge=0)] = 0
    """Iterations of pixel-adaptive refinement of the dense scores."""
    pamr_at: Literal["resized", "original"] = "resized"
    """Size at which the scores are refined: the size that CLIP sees, or that of the image, which takes 4 bytes a pixel
    and label."""
    closing: Annotated[int, Field(ge=2, le=255)] | None = None
    """Side in pixels of the square of a morphological closing of the label map: classes with higher numbers fill gaps.
    null: no closing."""
    vote: Share | Literal["soft"] = 0.6
    """Share of a mask's pixels that must carry its class. 0: a mask gets its most frequent class. `soft`: the class of
    the highest mean probability."""
    tile: Annotated[int, Field(ge=128)] | None = None
    """Side in pixels of the view around an object that SAM2 sees. null: the whole image."""
    output: Literal["instances", "semantic"] = "instances"
    """One mask per object, or one per class."""
    fallback: Literal["dense", "none"] = "dense"
    """Pixels without a mask keep their class of the dense map, or get none."""
    point: Literal["peak", "centroid"] = "peak"
    """Where in a component SAM2 is prompted: the pixel farthest from its edge, or its centroid."""
    min_distance: Annotated[float, Field(ge=0)] = 20.0
    """Smallest distance in pixels between two prompts of a class."""
    min_area: Share = 0.001
    """Smaller components, as a share of the image, get no prompt and no mask."""
    min_confidence: Share = 0.7
    """Only pixels of at least this probability form components."""
    min_region: Annotated[int, Field(ge=1)] = 100
    """Pixels that a component needs to get a prompt."""
    predicted_iou: Share = 0.8
    """Masks that SAM2 rates no higher leave the dense map unchanged."""
    prompt_floor: Share = 0.1
    """Pixels below this probability belong to no prompt."""
    same_object: Share = 0.8
    """IoU from which two masks of a class show the same object. The lower rated one is dropped."""
    max_points: Annotated[int, Field(ge=1)] = 256
    """Most prompts of an image. The largest components come first."""
    bank: PathText | None = None
    """A memory bank that `ovseg-batch bank build` wrote. It relabels every mask by similar regions. null: none."""
    bank_neighbours: Annotated[int, Field(ge=1, le=1000)] = 5
    """Similar regions that decide together."""
    bank_weight: Share = 0.7
    """Weight of these regions' scores against the mask's own."""


class AlphaConfig(Section):
    """The edge of what an edit keeps."""

    soft: bool = True
    """Compute a soft edge. false: the mask's own hard edge."""
    model: PathText | None = None
    """A matting network for hair and fur: a ViTMatte's name from `ovseg-batch models list`, its hub id, or a folder
    that transformers wrote. It computes alpha in the band. null: local colours decide."""
    band: Annotated[int, Field(ge=1)] | None = None
    """Width of the soft edge in pixels, on each side of the mask's edge. null: 0.5 % of the longer side, and 2 % with
    `edit.alpha.model`."""
    decontaminate: bool = True
    """Remove the old background's colour from the soft edge."""


class FillConfig(Section):
    """What `edit.mode: fill` puts in place of the removed part."""

    kind: Literal["colour", "blur", "gradient", "image"] = "colour"
    """What replaces the removed part: a colour, the blurred image, a gradient, or another image."""
    colour: str = "white"
    """The colour, or the upper colour of a gradient, by name or as #rrggbb."""
    colour_below: str = "lightgrey"
    """The lower colour of a gradient."""
    blur: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Sigma of the blur, as a share of the longer side of the image, or of the removed mask."""
    image: PathText | None = None
    """Path of the image for `edit.fill.kind: image`."""

    @field_validator("colour", "colour_below")
    @classmethod
    def _is_colour(cls, colour: str) -> str:
        try:
            ImageColor.getrgb(colour)
        except ValueError:
            raise ValueError("is no colour; write a CSS name such as white, or #rrggbb") from None
        return colour

    @model_validator(mode="after")
    def _names_its_image(self) -> FillConfig:
        if self.kind == "image" and not self.image:
            raise ValueError("needs fill.image, the picture to put there")
        return self


class CropConfig(Section):
    """The frame of `edit.mode: crop`."""

    margin: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Margin on each side, as a share of the longer side of the mask's box."""
    square: bool = False
    """Make the crop square."""


class EditConfig(Section):
    """What is made of each image once its masks exist."""

    mode: Literal["none", "cutout", "fill", "mask", "crop", "erase", "remove", "replace", "style"] = "none"
    """The edit that is applied to each image once its masks exist (docs/editing.md). `none`: no edit."""
    keep: tuple[str, ...] = ()
    """Labels that stay while everything else is changed."""
    drop: tuple[str, ...] = ()
    """Labels that are changed. With neither keep nor drop, all labels are kept or changed, depending on the mode."""
    min_score: Share = 0.0
    """Masks with a lower score are skipped."""
    apart: bool = False
    """Write one file per mask."""
    on_empty: Literal["auto", "copy", "skip", "fail"] = "auto"
    """For an image without a mask: copy it, write no file, or fail it. `auto` copies where labels are changed. Where
    labels are kept, `fill` writes the filling alone, `mask` a blank mask, `cutout` and `crop` no file."""
    dilation: Annotated[int, Field(ge=0)] = 8
    """Pixels by which the removed part is widened."""
    feather: Annotated[float, Field(ge=0)] = 4.0
    """Pixels over which the new content fades in, inwards from the edge of the widened part."""
    shape: Literal["mask", "box"] = "mask"
    """Change the mask itself, or its whole box, which leaves room for an object of another shape."""
    alpha: AlphaConfig = AlphaConfig()
    fill: FillConfig = FillConfig()
    crop: CropConfig = CropConfig()
    format: Literal["auto", "png", "webp", "jpeg", "tiff"] = "auto"
    """Format of the edited files. `auto` keeps the format of an image file where it is lossless, otherwise PNG."""
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Quality of WebP and JPEG. null: lossless WebP, and 95 for JPEG."""
    compression: Annotated[int, Field(ge=0, le=9)] = 6
    """Compression of PNG, from 0 (fast) to 9 (small)."""
    metadata: Literal["keep", "colour", "none"] = "keep"
    """Keep EXIF and the colour profile, the colour profile alone, or nothing."""
    prompt: str = ""
    """Prompt of the generator. {label} stands for the mask's label."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Label → prompt, for single labels."""
    negative_prompt: str = ""
    """What the generator avoids. {label} stands for the mask's label."""
    seed: int = 0
    """Seed of the noise. A column `seed` in the list of images takes precedence."""
    together: bool = False
    """Change all masks of a label in one pass of the generator, not one after the other."""

    @field_validator("keep", "drop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return split_names([value]) if isinstance(value, str) else split_words(value)

    @model_validator(mode="after")
    def _one_way(self) -> EditConfig:
        if self.keep and self.drop:
            raise ValueError("has both keep and drop; name either what stays or what goes")
        return self


class Config(Section):
    """All settings of a run."""

    about: About = About()
    protocol: protocols.Name | None = None
    """The published evaluation protocol that `labels: dataset:NAME` follows (docs/benchmarks.md). null: SCLIP's words
    and thresholds alone."""
    method: str = "dense"
    """`dense` predicts a class for every pixel first. `proposals` draws masks first and classifies them. `detect` finds
    boxes first and draws a mask in each. `sam3` searches for the masks of each word with SAM 3. `hybrid` merges the
    masks of one of these with those of `dense` (`merge`)."""
    labels: tuple[Label, ...] = ()
    """What to look for: text such as "car; person: person, people", or a list (`labels[]`)."""
    definitions: PathText | None = None
    """A file with a definition of every label, one `NAME >= TEXT` a line (docs/benchmarks.md). It sets
    `labels[].definition`. null: no file."""
    background: tuple[str, ...] | Literal["auto", "none", "common"] = "auto"
    """Words for everything that is not a label. `auto`: a vocabulary of common things (docs/words.md). `none`: every
    pixel gets a label. `common`: a short list of background words. Under `method: detect` no word competes, and under
    `method: sam3` only those that are given here."""
    paint: Literal["exclusive", "overlapping"] | None = None
    """`exclusive`: a pixel belongs to one mask at most. `overlapping`: every mask stays whole, such as that of a car
    with its wheels. null: `overlapping` under `method: detect` and for the objects of `method: sam3`, also where
    `hybrid` merges them, otherwise `exclusive`."""
    manifest: ManifestConfig = ManifestConfig()
    clip: ClipConfig = ClipConfig()
    sam: SamConfig = SamConfig()
    dino: DinoConfig = DinoConfig()
    owl: OwlConfig = OwlConfig()
    sam3: Sam3Config = Sam3Config()
    dense: DenseConfig = DenseConfig()
    propose: ProposeConfig = ProposeConfig()
    presence: PresenceConfig = PresenceConfig()
    refine: RefineConfig = RefineConfig()
    classify: ClassifyConfig = ClassifyConfig()
    detect: DetectConfig = DetectConfig()
    merge: MergeConfig = MergeConfig()
    edit: EditConfig = EditConfig()
    inpaint: InpaintConfig = InpaintConfig()
    run: RunConfig = RunConfig()

    @property
    def painting(self) -> Literal["exclusive", "overlapping"]:
        """How masks share pixels: `paint`, or the value of the method where it is null."""
        method = self.merge.things if self.method == "hybrid" else self.method
        objects = method == "detect" or (method == "sam3" and self.sam3.output == "instances")
        return self.paint or ("overlapping" if objects else "exclusive")

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
        folded: dict[str, str] = {}
        for name in names:
            other = folded.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} differ in capitals or the form of letters alone; keep one")
        return labels
