"""Settings of the models: CLIP, SAM2, DINO, and the generator of edits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovseg_batch.settings.section import Execution, PathText, Precision, Section, Share


class ClipConfig(Section):
    """The CLIP or TIPSv2 for the features of words and pixels."""

    model: PathText = "openai-b16"
    """A name from `ovseg-batch models list`; or an architecture of open_clip; or `local-dir:` and a folder that
    open_clip wrote, or transformers for a TIPSv2. A TIPSv2 needs `dense.attention: vanilla`."""
    weights: PathText | None = None
    """A file, a pretrained tag of open_clip, or a hub id. null: the weights of the named model."""
    precision: Precision | None = None
    """Precision of CLIP. null: `run.precision`."""


class SamConfig(Section):
    """The SAM2 or SAM model for outlines."""

    model: PathText = "sam2.1-large"
    """A name from `ovseg-batch models list`, or a Hydra config of sam2."""
    weights: PathText | None = None
    """A .pt or .pth file as Meta publishes it, or safetensors. null: the weights of the named model."""
    precision: Precision | None = None
    """Precision of SAM2. null: `run.precision`."""
    cache: Literal["none", "embeddings"] = "none"
    """Stored results of every image. With `embeddings`, a later `query` can prompt SAM2 without reading the images."""


class DinoConfig(Section):
    """The DINO whose features correlate the patches of CLIP under `dense.attention: corrclip-dino`."""

    model: PathText = "dino-b8"
    """A name from `ovseg-batch models list`, or `local-dir:` and a folder that timm wrote."""
    weights: PathText | None = None
    """A .pth file as Meta publishes it, or safetensors. null: the weights of the named model."""
    precision: Precision | None = None
    """Precision of DINO. null: `run.precision`."""


class Sam3Execution(Execution):
    """The memory that SAM 3 takes."""

    words_chunk: Annotated[int, Field(ge=1)] | None = None
    """Words that SAM 3 computes together on a GPU. It is halved when memory runs out. A CPU computes one at a time.
    null: 8."""


class Sam3Config(Sam3Execution):
    """SAM 3 and the masks of `method: sam3`."""

    model: PathText = "sam3"
    """A name from `ovseg-batch models list`, or `local-dir:` and a folder that transformers wrote."""
    weights: PathText | None = None
    """Safetensors with the names of transformers. null: the weights of the named model."""
    precision: Precision | None = None
    """Precision of SAM 3. null: `run.precision`."""
    size: Annotated[int, Field(ge=336, multiple_of=336)] | None = None
    """Side in pixels of the square that SAM 3 sees: a multiple of 336. null: that of its training, 1008."""
    tile: Annotated[int, Field(ge=336)] | None = None
    """Side in pixels of overlapping squares that are searched beside the whole image, where that is larger. An object
    that such a square cuts comes from another square or from the whole image. null: the whole image alone."""
    floor: Share = 0.1
    """Masks with a lower score are not computed, and no mask of a word that has no better one."""
    mask: Share = 0.5
    """Probability from which a pixel belongs to a mask."""
    maps: Literal["found", "all", "instances"] = "found"
    """Maps that `sam3.output: semantic` reads: of words with a mask, from both heads of SAM 3; of all words, which are
    computed in full; or of words with a mask, from the head of instances alone."""
    cache: Literal["none", "embeddings"] = "none"
    """Stored results of every image. With `embeddings`, a later `query` needs neither the images nor their encoder."""
    threshold: Share = 0.3
    """Masks whose score is not higher are dropped. It is at least `sam3.floor`."""
    nms: Share = 0.7
    """Of two masks of a class that overlap by more than this IoU, the one with the lower score is dropped."""
    contained: Share = 0.9
    """Of two masks of a class, one of which has a larger share than this in the other, the one with the lower score is
    dropped."""
    output: Literal["instances", "semantic"] = "instances"
    """One mask per object, or one per class from the maximum of both heads of SAM 3."""
    soft: Share = 0.5
    """Lowest value of a pixel under `sam3.output: semantic`."""
    min_area: Share = 0.0
    """Masks that cover a smaller share of the image are dropped."""


class InpaintExecution(Execution):
    """The memory that the generator takes."""

    offload: Literal["none", "model", "sequential"] = "none"
    """Move parts of the model between GPU and main memory, for GPUs that cannot hold all of it."""
    attention_slicing: bool = False
    """Compute the attention in slices: slower, with less GPU memory."""


class InpaintConfig(InpaintExecution):
    """The generator of `edit.mode: remove`, `replace` and `style`: a pipeline of diffusers."""

    model: PathText = "sd2-inpainting"
    """A name from `ovseg-batch models list`, a folder that diffusers saved, or a hub id that has been fetched."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps. null: the value of the model's authors."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """How closely the generator follows the prompt. null: the value of the model's authors."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the image's content that is replaced by noise at the start. null: 1, and 0.6 for `edit.mode: style`."""
    size: Annotated[int, Field(ge=64, multiple_of=8)] | None = None
    """Side in pixels of the square that the generator computes. null: the size that the model was trained at."""
    context: Annotated[float, Field(ge=0, le=4)] = 0.3
    """Visible context around a mask's box, as a share of the box's longer side."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Squares computed together. Above 1 the last bits of an image may depend on its neighbours in the batch."""
