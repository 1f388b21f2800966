"""Features for the Fréchet inception distance: InceptionV3 as trained for TensorFlow in 2015.

Its pooling differs from torchvision's in four kinds of blocks: averages exclude the padding, and the last block uses
the maximum. Weights and features equal those of mseitzer/pytorch-fid, whose file can be loaded unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as torchvision_inception

from ovseg_batch.models.weights import load_weights, read_state_dict
from ovseg_batch.models.zoo import checkpoint_folders
from ovseg_batch.types.arrays import Floats, Pixels

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
SIDE = 299  # pixels
CLASSES = 1008


inception: Any = torchvision_inception  # untyped


class _Pooled(nn.Module):
    """A block whose pooling branch, the last one, averages without the padding."""

    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        block: Any = super()
        *convolved, _ = block._forward(x)
        return [*convolved, self.branch_pool(self._pool(x))]

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(_Pooled, inception.InceptionA):  # type: ignore[misc]
    pass


class _C(_Pooled, inception.InceptionC):  # type: ignore[misc]
    pass


class _E(_Pooled, inception.InceptionE):  # type: ignore[misc]
    pass


class _LastE(_E):
    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


def inception_weights() -> Path | None:
    """Return the weights file in a checkpoint folder or in pytorch-fid's cache, or None."""
    folders = [*checkpoint_folders(), Path(torch.hub.get_dir()) / "checkpoints"]
    return next((folder / WEIGHTS for folder in folders if (folder / WEIGHTS).is_file()), None)


class Inception:
    """The network up to its last pooling layer."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        network = self.network()
        load_weights(network, read_state_dict(str(weights)), str(weights), "Inception")
        network.fc = nn.Identity()
        self._network, self._device = network.eval().to(device), device

    @staticmethod
    def network() -> Any:
        """Return an untrained network with the layer names of the weights file."""
        blocks = [inception.BasicConv2d, _A, inception.InceptionB, _C, inception.InceptionD, _E, None]
        network = inception.Inception3(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
        network.Mixed_7c = _LastE(2048)
        return network

    @torch.inference_mode()
    def features(self, images: Pixels) -> Floats:
        """Return the features (N, 2048) float32 of images (N, H, W, 3) uint8 RGB."""
        pictures = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        resized = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
        features: Floats = self._network(resized * 2 - 1).cpu().numpy()
        return features
