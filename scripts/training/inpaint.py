"""Train the small inpainting pipeline: an autoencoder first, then the text model and the UNet over its latents.

Three things are asked of the UNet, each under words that say so. What was behind a thing: the scene is rendered again
without it, and the pixels outside the mask stay those with the thing and its shadow. The thing itself, behind a mask
that is wider than it. And a stretch of stuff. Crops are cut around the mask as the edit stage cuts them.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from open_clip.tokenizer import bytes_to_unicode
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ovseg_batch import scenes
from training.clock import Clock
from training.pool import Pool

Array = np.ndarray[Any, Any]

library: Any = diffusers  # typed in parts only

SIDE = 96  # pixels the pipeline works at
LATENT = SIDE // 4
CONTEXT = 24  # tokens
EMA = 0.999
VAE_BATCH, VAE_CROP = 12, 64
SCHEDULE = ((0.7, 64, 32), (1.0, SIDE, 16))  # until this share of the time: pixels a side, images a step
COLOURS = 2.0  # times the mean colour of 4 × 4 pixels is what three of the four channels of a code are
CODE_NOISE = 0.1  # laid on the codes in training the autoencoder
EMPTY = 0.1  # share of examples without words, for guidance
TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """`image` (SIDE, SIDE, 3) uint8 is to come out; of it and `seen` only what lies outside `mask` is shown."""

    image: Array
    seen: Array
    mask: Array
    words: str


def open_pairs(folder: Path, pool: Pool) -> tuple[Array, Array]:
    """Every scene of the pool without one of its things, (n, 256, 256, 3), and which one (n,), 0 where it has none."""
    count = len(pool.sizes)
    images, taken = folder / f"without-{count}.npy", folder / f"taken-{count}.npy"
    if not taken.exists():
        rng = np.random.default_rng(7)
        stored = np.lib.format.open_memmap(images, "w+", np.uint8, pool.images.shape)
        which = np.zeros(count, np.uint8)
        for k in range(count):
            present = np.unique(pool.instances[k])[1:]
            if len(present):
                which[k] = rng.choice(present)
                scene = scenes.render(scenes.TRAIN_SEEDS[k], without=[int(which[k])])
                h, w = scene.classes.shape
                stored[k, :h, :w] = scene.image
        stored.flush()
        np.save(taken, which)
    return np.load(images, mmap_mode="r"), np.load(taken)


class Examples:
    """Draws what the UNet is asked."""

    def __init__(self, pool: Pool, pairs: tuple[Array, Array], chosen: range) -> None:
        self._pool, (self._without, self._taken) = pool, pairs
        self._chosen, self._side = chosen, SIDE

    def draw(self, rng: np.random.Generator, side: int = SIDE) -> Example:
        self._side = side
        while True:
            k = int(rng.integers(self._chosen.start, self._chosen.stop))
            asked = rng.random()
            make = self.behind if asked < 0.5 else self._thing if asked < 0.88 else self._stuff
            found = make(k, rng)
            if found is not None:
                return found

    def behind(self, k: int, rng: np.random.Generator) -> Example | None:
        """The scene without the thing that was taken away."""
        image, classes, instances = self._scene(k)
        if not self._taken[k]:
            return None
        silhouette = instances == self._taken[k]
        if silhouette.sum() < 30:
            return None
        h, w = classes.shape
        behind = self._without[k, :h, :w]
        mask = _widened(silhouette, rng, boxes=0.2)
        around = np.unique(classes[cv2.dilate(mask, np.ones((15, 15), np.uint8)) - mask > 0])
        stuff = [scenes.CLASSES[c] for c in around if c < len(scenes.STUFF)]
        words = "background" if rng.random() < 0.7 or not stuff else " and ".join(stuff)
        return self._cut(np.where(mask[..., None] > 0, behind, image), image, mask, words, rng)

    def _thing(self, k: int, rng: np.random.Generator) -> Example | None:
        """A thing in the place it has."""
        image, classes, instances = self._scene(k)
        present = np.unique(instances)[1:]
        if not len(present):
            return None
        silhouette = instances == rng.choice(present)
        if silhouette.sum() < 150:
            return None
        name = scenes.CLASSES[int(np.bincount(classes[silhouette]).argmax())]
        colour = self._pool.colours[k].get(name, "")
        if colour and rng.random() < 0.3:
            name = f"{colour} {name}"
        words = ("{}", "a {}", "a photo of a {}")[int(rng.integers(3))].format(name)
        return self._cut(image, image, _widened(silhouette, rng, boxes=0.6), words, rng)

    def _stuff(self, k: int, rng: np.random.Generator) -> Example | None:
        """A stretch of stuff, all of it or a piece."""
        image, classes, instances = self._scene(k)
        here = np.unique(classes[instances == 0])
        kind = int(rng.choice(here))
        mask = (classes == kind).astype(np.uint8)
        if rng.random() < 0.6:
            h, w = mask.shape
            piece = np.zeros_like(mask)
            centre, axes = rng.uniform((0, 0), (w, h)), rng.uniform(12, 60, 2)
            spin = float(rng.uniform(0, 180))
            cv2.ellipse(piece, [int(v) for v in centre], [int(v) for v in axes], spin, 0, 360, 1, -1)
            mask &= piece
        if mask.sum() < 150:
            return None
        words = ("{}", "a photo of {}")[int(rng.integers(2))].format(scenes.CLASSES[kind])
        return self._cut(image, image, mask, words, rng)

    def _scene(self, k: int) -> tuple[Array, Array, Array]:
        h, w = self._pool.sizes[k]
        return self._pool.images[k, :h, :w], self._pool.classes[k, :h, :w], self._pool.instances[k, :h, :w]

    def _cut(self, image: Array, seen: Array, mask: Array, words: str, rng: np.random.Generator) -> Example:
        h, w = mask.shape
        x, y, bw, bh = cv2.boundingRect(mask)
        side = int(np.clip(max(bw, bh) * rng.uniform(1.25, 2.2), 64, min(h, w)))
        left = int(np.clip(x + bw / 2 - side / 2 + rng.uniform(-0.1, 0.1) * side, 0, w - side))
        top = int(np.clip(y + bh / 2 - side / 2 + rng.uniform(-0.1, 0.1) * side, 0, h - side))
        parts = [part[top : top + side, left : left + side] for part in (image, seen, mask)]
        how = cv2.INTER_AREA if side > self._side else cv2.INTER_CUBIC
        size = (self._side, self._side)
        a, b = (cv2.resize(np.ascontiguousarray(part), size, interpolation=how) for part in parts[:2])
        m = cv2.resize(parts[2], size, interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            a, b, m = a[:, ::-1], b[:, ::-1], m[:, ::-1]
        return Example(a, b, m, "" if rng.random() < EMPTY else words)


def _widened(silhouette: Array, rng: np.random.Generator, boxes: float) -> Array:
    """A mask around a thing: its silhouette 4 to 12 pixels wider, or a box or an ellipse around it."""
    mask = silhouette.astype(np.uint8)
    margin = int(rng.integers(4, 13))
    if rng.random() >= boxes:
        return np.asarray(cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2)))
    x, y, w, h = cv2.boundingRect(mask)
    wide = np.zeros_like(mask)
    if rng.random() < 0.7:
        wide[max(0, y - margin) : y + h + margin, max(0, x - margin) : x + w + margin] = 1
        return wide
    centre, axes = (x + w // 2, y + h // 2), (int(w * 0.71) + margin // 2, int(h * 0.71) + margin // 2)
    cv2.ellipse(wide, centre, axes, 0, 0, 360, 1, -1)
    return wide | mask


def _tensor(images: list[Array]) -> Tensor:
    """(N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_tokenizer(folder: Path, merges: Path) -> Any:
    """The tokenizer of the embedded CLIP in the files that transformers reads."""
    learnt = gzip.decompress(merges.read_bytes()).decode().split("\n")[1:]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(line.replace(" ", "") for line in learnt)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *learnt]) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=CONTEXT)


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


class VaeTrainer:
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
            images = self._batch(range(self.pool.train), VAE_BATCH, VAE_CROP)
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
        return _tensor(crops).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _report(self) -> str:
        rng, self.rng = self.rng, np.random.default_rng(3)
        images = self._batch(range(self.pool.train, len(self.pool.sizes)), 32, 96)
        self.rng = rng
        again = self.model.decode(self._encode(images)).sample.clamp(-1, 1)
        return f"dev PSNR {10 * np.log10(4 / F.mse_loss(again, images).item()):.2f} dB  loss {self.loss:.4f}"


class Trainer:
    """The text model and the UNet."""

    def __init__(self, pool: Pool, out: Path, state: Path, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.out = out
        self.tokenizer = write_tokenizer(state / "tokenizer", out / "bpe.txt.gz")
        pairs = open_pairs(state, pool)
        self.examples = Examples(pool, pairs, range(pool.train))
        self.dev = Examples(pool, pairs, range(pool.train, len(pool.sizes)))
        shipped = out / "inpaint"
        if (state / "inpaint-vae.pt").exists():
            trained = torch.load(state / "inpaint-vae.pt", weights_only=True)
            self.vae = make_vae()
            self.vae.load_state_dict(trained["model"])
            self.vae.register_to_config(scaling_factor=trained["scale"])
        else:
            self.vae = library.AutoencoderKL.from_pretrained(str(shipped / "vae"), dtype=torch.float32)
        certain(self.vae)
        self.vae = self.vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                projection_dim=128,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.unet = library.UNet2DConditionModel(
            sample_size=LATENT,
            in_channels=9,
            out_channels=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 112),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=(8, 32, 8),  # heads of the third, channels a head of the second
            norm_num_groups=2,
        ).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # the fused one's backward is twice as slow on a CPU
        self.scheduler = library.DDIMScheduler(
            TIMESTEPS,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        )
        self.models = nn.ModuleDict({"text": self.text, "unet": self.unet})
        self.optimiser = torch.optim.AdamW(self.models.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.01)
        self.clock = Clock(state / "inpaint.pt", minutes, self._state)
        saved = self.clock.resume()
        if saved is not None:
            self.models.load_state_dict(saved["models"])
            self.optimiser.load_state_dict(saved["optimiser"])
        elif (shipped / "unet").is_dir():  # from the weights that are there; delete the folder to begin anew
            self.text.load_state_dict(load_file(shipped / "text_encoder" / "model.safetensors"))
            self.unet.load_state_dict(load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors"))
        self.ema = {k: v.clone() for k, v in (saved["ema"] if saved else self.models.state_dict()).items()}
        self.rng = np.random.default_rng([seed, self.clock.step])
        self.loss = 0.0

    def _state(self) -> dict[str, Any]:
        return {"models": self.models.state_dict(), "optimiser": self.optimiser.state_dict(), "ema": self.ema}

    def train(self) -> None:
        exported = self.clock.spent
        for step in self.clock.steps(lambda: f"loss {self.loss:.4f}  {self._dev()}"):
            for group in self.optimiser.param_groups:
                group["lr"] = self.clock.rate(1e-3)
            side, count = next(size for until, *size in SCHEDULE if self.clock.fraction <= until)
            loss = self._loss([self.examples.draw(self.rng, side) for _ in range(count)])
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
            self.optimiser.step()
            self.loss = 0.98 * self.loss + 0.02 * loss.item()
            decay = min(EMA, (1 + step) / (10 + step))
            for name, value in self.models.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay) if value.is_floating_point() else self.ema[name].copy_(value)
            if self.clock.spent - exported > 300:
                self.export()
                exported = self.clock.spent
        self.export()

    def _loss(self, batch: list[Example]) -> Tensor:
        mask = torch.from_numpy(np.stack([e.mask for e in batch])).float()[:, None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            both = _tensor([e.image for e in batch]), _tensor([e.seen for e in batch]) * (mask < 0.5)
            latents = self.vae.encode(torch.cat(both).contiguous(memory_format=torch.channels_last)).latent_dist.mean
        wanted, shown = (latents.float() * self.vae.config.scaling_factor).chunk(2)
        small = F.interpolate(mask, size=wanted.shape[-2:])
        noise = torch.randn_like(wanted)
        share = (torch.arange(len(batch)) + torch.rand(1)) / len(batch)
        share = 1 - (1 - share) ** 3  # a third above 95 % of noise, where few steps spend most
        when = ((share * TIMESTEPS).long().clamp(max=TIMESTEPS - 1))[torch.randperm(len(batch))]
        noisy = self.scheduler.add_noise(wanted, noise, when)
        target = self.scheduler.get_velocity(wanted, noise, when)
        tokens = self.tokenizer([e.words for e in batch], padding="max_length", max_length=CONTEXT, truncation=True)
        with torch.autocast("cpu", torch.bfloat16):
            words = self.text(torch.tensor(tokens.input_ids))[0]
            entered = torch.cat([noisy, small, shown], 1).contiguous(memory_format=torch.channels_last)
            told = self.unet(entered, when, words).sample
        weight = 0.1 + F.max_pool2d(small, 3, 1, 1)
        error = (told.float() - target).pow(2).mean(1, keepdim=True)
        loss: Tensor = (error * weight).sum() / weight.sum()
        return loss

    def pipeline(self) -> Any:
        """The pipeline with the averaged weights."""
        current = {k: v.clone() for k, v in self.models.state_dict().items()}
        self.models.load_state_dict(self.ema)
        text, unet = CLIPTextModel(self.text.config), library.UNet2DConditionModel.from_config(self.unet.config)
        text.load_state_dict(self.text.state_dict())
        unet.load_state_dict(self.unet.state_dict())
        self.models.load_state_dict(current)
        return library.StableDiffusionInpaintPipeline(
            vae=self.vae,
            text_encoder=text,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @torch.no_grad()
    def _dev(self) -> str:
        """PSNR inside the mask of things taken away, over the scenes that are never trained on, in one step."""
        rng = np.random.default_rng(5)
        drawn = [self.dev.behind(k, rng) for k in range(len(self.dev._taken) - 40, len(self.dev._taken))]
        cases = [case for case in drawn if case is not None][:16]
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        again = pipe(
            ["background"] * len(cases),
            image=_tensor([c.seen for c in cases]) / 2 + 0.5,
            mask_image=torch.from_numpy(np.stack([c.mask for c in cases])).float()[:, None],
            height=SIDE,
            width=SIDE,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="np",
            generator=[torch.Generator().manual_seed(k) for k in range(len(cases))],
        ).images
        errors, plain = [], []
        for case, image in zip(cases, again, strict=True):
            inside = case.mask > 0
            errors.append(np.square(image[inside] * 255 - case.image[inside]).mean())
            filled = cv2.inpaint(case.seen, case.mask, 5, cv2.INPAINT_TELEA)
            plain.append(np.square(filled[inside].astype(float) - case.image[inside]).mean())
        ours, theirs = (float(np.mean(10 * np.log10(255**2 / np.array(part)))) for part in (errors, plain))
        return f"dev PSNR in the mask {ours:.2f} dB, OpenCV's {theirs:.2f}"

    def export(self) -> None:
        pipe = self.pipeline().to(torch.float16)
        pipe.save_pretrained(self.out / "inpaint")
        self.vae.float()
