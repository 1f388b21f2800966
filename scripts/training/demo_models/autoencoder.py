"""Train the small inpainting pipeline's autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_models.clock import Clock
from demo_models.inpaint_examples import SIDE
from demo_models.pool import Pool

Array = np.ndarray[Any, Any]

library: Any = diffusers  # typed in parts only

BATCH, CROP = 12, 64
COLOURS = 2.0  # times the mean colour of 4 × 4 pixels is what three of the four channels of a code are
CODE_NOISE = 0.1  # laid on the codes in training


def make_vae() -> Any:
    vae = library.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
        norm_num_groups=16,
        sample_size=SIDE,
    )
    certain(vae)
    return vae


def certain(vae: Any) -> None:
    """A code without spread: the pipeline draws its codes, and the spread is not trained; as it comes it is large."""
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = -30


class Trainer:
    """Crops in, the same crops out; some with a hole, as the pipeline shows them.

    Three channels of a code are made to be mean colours and the fourth is kept small, so that a code's distances are
    those of pictures; left free, textures had most of a code's energy, and the UNet learnt them before it learnt that
    what is behind a thing has the colours of what is around it. Half of the steps decode codes that were shrunk, and
    want the picture shrunk as much (scale equivariance after Kouzelis et al. 2025, EQ-VAE).
    """

    def __init__(self, pool: Pool, state: Path, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.pool = pool
        self.model = make_vae().to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), 1e-3, (0.9, 0.98), weight_decay=1e-3)
        self.clock = Clock(state / "inpaint-vae.pt", minutes, self._state)
        saved = self.clock.resume()
        self.scale = 1.0
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
        self.rng = np.random.default_rng([seed, self.clock.step])
        self.loss = 0.0

    def _state(self) -> dict[str, Any]:
        self.scale = 1 / float(self._encode(self._batch(range(self.pool.train), 64, 96)).std())
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "scale": self.scale}

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        mean: Tensor = self.model.encode(images).latent_dist.mean
        return mean

    def train(self) -> None:
        for _ in self.clock.steps(self._report):
            for group in self.optimiser.param_groups:
                group["lr"] = self.clock.rate(2e-3)
            images = self._batch(range(self.pool.train), BATCH, CROP)
            whole = F.avg_pool2d(images, 4)
            with torch.autocast("cpu", torch.bfloat16):
                mean = self.model.encode(images).latent_dist.mean
                latents = mean + CODE_NOISE * torch.randn_like(mean)
                shrink = int(self.rng.choice([1, 2, 4], p=[0.5, 0.3, 0.2]))
                if shrink > 1:
                    latents, images = F.avg_pool2d(latents, shrink), F.avg_pool2d(images, shrink)
                again = self.model.decode(latents).sample
            again = again.float()
            like = F.mse_loss(mean[:, :3].float(), COLOURS * whole)
            loss = (
                (again - images).abs().mean()
                + 2 * F.mse_loss(again, images)
                + 4 * like
                + 0.05 * mean[:, 3].pow(2).mean()
            )
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.loss = 0.97 * self.loss + 0.03 * loss.item()

    def _batch(self, chosen: range, count: int, side: int) -> Tensor:
        crops = []
        for _ in range(count):
            k = int(self.rng.integers(chosen.start, chosen.stop))
            h, w = self.pool.sizes[k]
            size = int(self.rng.integers(side * 2 // 3, min(side * 7 // 4, h, w)))
            y, x = int(self.rng.integers(h - size + 1)), int(self.rng.integers(w - size + 1))
            crop = cv2.resize(np.ascontiguousarray(self.pool.images[k, y : y + size, x : x + size]), (side, side))
            if self.rng.random() < 0.2:
                a, b = np.sort(self.rng.integers(0, side, (2, 2)), axis=0)
                crop[a[0] : b[0], a[1] : b[1]] = 127
            crops.append(crop)
        return as_tensor(crops).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _report(self) -> str:
        rng, self.rng = self.rng, np.random.default_rng(3)
        images = self._batch(range(self.pool.train, len(self.pool.sizes)), 32, 96)
        self.rng = rng
        again = self.model.decode(self._encode(images)).sample.clamp(-1, 1)
        return f"dev PSNR {10 * np.log10(4 / F.mse_loss(again, images).item()):.2f} dB  loss {self.loss:.4f}"


def as_tensor(images: list[Array]) -> Tensor:
    """(N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
