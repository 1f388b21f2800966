"""A model that can be loaded, as its name, its architecture and its files. No model library is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models.presets import LOGIT_SCALE, Kind

RANDOM = "random:"  # weights "random:SEED": full-size models for tests of speed and loading
FOLDER = "local-dir:"  # prefix of an architecture: a model in a folder
SAM1 = "sam1/"  # prefix of the architecture of a SAM of the first version


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be loaded: an architecture and the file (or `random:SEED`) of its weights.

    Attributes:
        window: side of the images that the model was trained on, in pixels.
        short_side: default length in pixels of the shorter side of resized images.
        config_hash: hash of the architecture's config file, if there is one.
        patch: side of a patch in pixels.
        width: length of a feature.
        logit_scale: multiplies the similarities of image and text.
        context: most tokens of a prompt of SAM 3 or of a TIPSv2.
        tokenizer: the tokenizer's file of a TIPSv2. Empty for a CLIP, whose tokenizer open_clip has.
    """

    kind: Kind
    name: str
    architecture: str
    weights: str
    window: int
    short_side: int | Literal["native"]
    licence: str
    quick_gelu: bool | None = None
    config_hash: str = ""
    patch: int = 16
    width: int = 256
    logit_scale: float = LOGIT_SCALE
    context: int = 32
    tokenizer: str = ""

    @property
    def embedded(self) -> bool:
        """Return whether the model is part of the package."""
        return self.architecture.startswith("demo/")

    @property
    def is_sam1(self) -> bool:
        """Return whether the model is a SAM of the first version."""
        return self.kind == "sam" and self.architecture.startswith((SAM1, FOLDER))

    @property
    def is_tipsv2(self) -> bool:
        """Return whether the model is a TIPSv2, which has none of CLIP's blocks."""
        return bool(self.tokenizer)

    @property
    def seed(self) -> int | None:
        """Return the seed of random weights, or None for the weights of a file."""
        return int(self.weights.removeprefix(RANDOM)) if self.weights.startswith(RANDOM) else None

    def identity(self) -> dict[str, str]:
        """Return the values that results depend on, for fingerprints."""
        own = {"tokenizer": file_hash(self.tokenizer)} if self.tokenizer else {}
        return {"model": self.architecture, "weights": self.weights_hash(), "config": self.config_hash, **own}

    def weights_hash(self) -> str:
        """Return the BLAKE2b hash of the weights file, or `random:SEED`."""
        return file_hash(self.weights) if self.seed is None else self.weights
