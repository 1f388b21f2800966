"""Train the small CLIP: first on crops and their captions alone, then also on captions of sub-rectangles.

Each step sees crops of g × g patches at native scale, with the position embedding of a random g × g part of the grid:
small crops cost few tokens and their captions are precise, which is what teaches single patches anything. The last
third of the image stage sees whole windows only and pools a few random patches of each: every patch must then come to
speak for the whole window, as in CLIPs out in the world, whose class token does, and it is attention that decides how
good a dense map is.

A third stage makes a CLIP whose class token speaks, as mask tokens and crops need it: it goes on from the region stage
at twice the window, sees whole scenes and crops at two scales, and takes the class token for the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo_models.clock import Clock
from demo_models.pool import Pool
from demo_models.text import CONTEXT, write_tokenizer
from ovseg_batch import scenes
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.scenes.captions import sentence

Array = np.ndarray[Any, Any]

PATCH = 8
GRIDS = {8: 28, 5: 48, 3: 72, 2: 96}  # patches a side → crops in the batch
SHARES = (0.4, 0.25, 0.2, 0.15)
WHOLE = 42 / 66  # share of the image stage after which it sees whole windows only, as CLIPs out in the world have done
POOLED = 4  # of the 64 patches: random ones that must speak for the whole window then
WHOLE_PEAK = 4e-4  # the learning rate begins anew there
TOKEN_GRIDS = {16: 8, 8: 28, 5: 48, 3: 72, 2: 96}
TOKEN_SHARES = (0.35, 0.25, 0.15, 0.15, 0.1)
CROPS = "clip-crops.pt"  # the state at that moment, from which the region stage goes on
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NAMED_LARGE, NAMED_SMALL = 0.02, 0.2  # share of a crop from which its caption names a class
CLASSES = len(scenes.CLASSES)
STAGES = ("image", "region", "token")


def prepare(out: Path, token: bool = False) -> dict[str, Any]:
    """Write the tokenizer and the model's config; the config."""
    out.mkdir(parents=True, exist_ok=True)
    merges = write_tokenizer(out / "bpe.txt.gz")
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": PATCH * max(TOKEN_GRIDS if token else GRIDS),
                "patch_size": PATCH,
                "width": 192,
                "layers": 6,
                "head_width": 64,
                "pool_type": "tok" if token else "avg",
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": 512 + merges + 2,
                "width": 128,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)},
        "labels": list(scenes.CLASSES),
    }
    (out / ("clip-token.json" if token else "clip.json")).write_text(json.dumps(config, indent=2) + "\n")
    return config


def attention(block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Explicit softmax attention; on a CPU its backward takes half the time of the fused one's."""
    attn = block.attn
    heads = (*x.shape[:2], attn.num_heads, -1)
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (part.reshape(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    out: Tensor = attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return out


def image_tokens(visual: Any, images: Tensor, corner: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Projected class token (B, D) and patch tokens (B, g, g, D) of crops (B, 3, 8g, 8g) at a corner of the grid."""
    x = visual.conv1(images)
    g = x.shape[-1]
    side = visual.grid_size[0]
    position = visual.positional_embedding[1:].view(side, side, -1)
    y0, x0 = corner
    x = x.flatten(2).transpose(1, 2) + position[y0 : y0 + g, x0 : x0 + g].flatten(0, 1)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], dim=1))
    for block in visual.transformer.resblocks:
        x = x + attention(block, block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    tokens: Tensor = visual.ln_post(x) @ visual.proj
    return tokens[:, 0], tokens[:, 1:].view(len(x), g, g, -1)


class Batch:
    """Random crops of one size, what is in them, and their captions."""

    def __init__(self, pool: Pool, rng: np.random.Generator, whole: bool, token: bool) -> None:
        grids, shares = (TOKEN_GRIDS, TOKEN_SHARES) if token else (GRIDS, SHARES)
        self.g = max(grids) if whole else int(rng.choice(list(grids), p=shares))
        side, count = PATCH * self.g, grids[self.g]
        y, x = rng.integers(0, max(grids) + 1 - self.g, 2)
        self.corner = int(y), int(x)
        self.images = np.empty((count, side, side, 3), np.uint8)
        self.maps = np.empty((count, side, side), np.uint8)
        self.colours = []
        for k in range(count):
            scene = int(rng.integers(pool.train))
            flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
            image, classes = _crop(pool, scene, side, rng, token)
            self.images[k], self.maps[k] = image[:, flip], classes[:, flip]
            self.colours.append(pool.colours[scene])

    def tensors(self, rng: np.random.Generator) -> Tensor:
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255
        images = images * torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1))).float()
        return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _crop(pool: Pool, scene: int, side: int, rng: np.random.Generator, token: bool) -> tuple[Array, Array]:
    """A square of `side` pixels; for the token stage the whole scene or a crop, often at half the scale."""
    h, w = pool.sizes[scene]
    if token and side == PATCH * max(TOKEN_GRIDS):
        y, x, h0, w0 = 0, 0, int(h), int(w)
    else:
        h0 = w0 = 2 * side if token and rng.random() < 0.6 else side
        y, x = _corner_of_crop(pool, scene, h0, rng)
    image, classes = (part[scene, y : y + h0, x : x + w0] for part in (pool.images, pool.classes))
    if (h0, w0) != (side, side):
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        classes = cv2.resize(classes, (side, side), interpolation=cv2.INTER_NEAREST)
    return image, classes


def _corner_of_crop(pool: Pool, scene: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Centred in a thing's box for 70 % of the crops, anywhere for the rest."""
    h, w = pool.sizes[scene]
    if rng.random() < 0.7:
        instances = pool.instances[scene, :h:4, :w:4]
        present = np.unique(instances)[1:]
        if len(present):
            ys, xs = np.nonzero(instances == present[int(rng.integers(len(present)))])
            y, x = (int(rng.integers(part.min(), part.max() + 1)) * 4 - side // 2 for part in (ys, xs))
            return int(np.clip(y, 0, h - side)), int(np.clip(x, 0, w - side))
    return int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))


def named_classes(maps: Array) -> tuple[Array, Array]:
    """Which classes a caption of each map names (N, C) and which are there but too small to name (N, C)."""
    flat = maps.reshape(len(maps), -1)
    share = np.stack([np.bincount(row, minlength=CLASSES) for row in flat]) / flat.shape[1]
    floor = NAMED_LARGE if flat.shape[1] >= (5 * PATCH) ** 2 else NAMED_SMALL
    named = share >= floor
    named[np.arange(len(share)), share.argmax(1)] = True
    return named, (share > 0) & ~named


class Trainer:
    def __init__(self, pool: Pool, out: Path, state: Path, stage: str, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.pool, self.out, self.stage = pool, out, stage
        self.crops = state / CROPS
        self.token = stage == "token"
        config = prepare(out, self.token)
        self.model: Any = open_clip.model.CLIP(**config["model_cfg"])
        self.tokenizer = SimpleTokenizer(bpe_path=str(out / "bpe.txt.gz"), context_length=CONTEXT)
        self.extra = nn.Parameter(torch.tensor([2.7, -4.0]))  # scale (log) and bias of the class prompts' sigmoid
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1] + [self.extra]
        self.peak = 1e-3 if stage == "image" else 7e-4
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], self.peak, (0.9, 0.98)
        )
        self.clock = Clock(state / f"clip-{stage}.pt", minutes, self._state)
        saved = self.clock.resume()
        if saved is None and stage == "region":
            first = torch.load(self.crops, weights_only=True)
            self.model.load_state_dict(first["model"])
            self.extra.data.copy_(first["extra"])
        elif saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.extra.data.copy_(saved["extra"])
        elif self.token:
            self._start_from(out / "clip-region.safetensors")
        self.rng = np.random.default_rng([seed, self.clock.step, STAGES.index(stage)])
        self.losses: dict[str, float] = {}

    def _start_from(self, weights: Path) -> None:
        """The region stage's weights, the position embedding stretched to the larger window."""
        state = {name: value.float() for name, value in load_file(weights).items()}
        position = state["visual.positional_embedding"]
        side, target = max(GRIDS), max(TOKEN_GRIDS)
        grid = position[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
        stretched = F.interpolate(grid, (target, target), mode="bicubic").permute(0, 2, 3, 1).flatten(0, 2)
        state["visual.positional_embedding"] = torch.cat([position[:1], stretched])
        self.model.load_state_dict(state)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "extra": self.extra.data,
        }

    def train(self) -> None:
        exported = self.clock.spent
        for _ in self.clock.steps(self._report):
            whole = self.stage == "image" and self.clock.fraction >= WHOLE
            for group in self.optimiser.param_groups:
                group["lr"] = self._rate(whole)
            if whole and not self.crops.exists():
                torch.save(self._state(), self.crops)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self._loss(Batch(self.pool, self.rng, whole, self.token), whole)
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, np.log(100))
            if self.clock.spent - exported > 120:
                self.export()
                exported = self.clock.spent
        self.export()

    def _rate(self, whole: bool) -> float:
        if whole:
            return WHOLE_PEAK * (1 - self.clock.fraction) / (1 - WHOLE)
        return self.clock.rate(self.peak)

    def _pooled(self, tokens: Tensor, whole: bool) -> Tensor:
        """The mean over all patches; over a few of them where every patch must come to speak for all."""
        flat = tokens.flatten(1, 2)
        if whole:
            chosen = torch.from_numpy(self.rng.permutation(flat.shape[1])[:POOLED])
            flat = flat[:, chosen]
        return flat.mean(1)

    def _loss(self, batch: Batch, whole: bool) -> Tensor:
        first, tokens = image_tokens(self.model.visual, batch.tensors(self.rng), batch.corner)
        named, faint = named_classes(batch.maps)
        pooled = F.normalize((first if self.token else self._pooled(tokens, whole)).float(), dim=-1)
        prompts = F.normalize(self._encode(self._class_prompts()).float(), dim=-1)
        drawn = self.rng.choice(len(named), min(48, len(named)), replace=False)
        loss = self._contrast(pooled[drawn], named[drawn], faint[drawn], [batch.colours[k] for k in drawn])
        loss = loss + self._classify(pooled, prompts, named, faint, f"bce{batch.g}")
        if self.stage == "region" and batch.g >= 5:
            loss = loss + self._regions(tokens, batch, prompts)
        return loss

    def _regions(self, tokens: Tensor, batch: Batch, prompts: Tensor) -> Tensor:
        """Four sub-rectangles of 2 × 2 or 3 × 3 patches, pooled after the transformer, each with its own caption."""
        features, maps, colours = [], [], []
        for _ in range(4):
            size = int(self.rng.integers(2, 4))
            y, x = (int(v) for v in self.rng.integers(0, batch.g - size + 1, 2))
            features.append(tokens[:, y : y + size, x : x + size].mean((1, 2)))
            part = batch.maps[:, y * PATCH : (y + size) * PATCH, x * PATCH : (x + size) * PATCH]
            named, faint = named_classes(part)
            maps.append((named, faint))
            colours += batch.colours
        pooled = F.normalize(torch.cat(features).float(), dim=-1)
        named, faint = (np.concatenate(part) for part in zip(*maps, strict=True))
        drawn = self.rng.choice(len(named), 48, replace=False)
        loss = self._contrast(pooled[drawn], named[drawn], faint[drawn], [colours[k] for k in drawn])
        return loss + self._classify(pooled, prompts, named, faint, "bce-region")

    def _contrast(self, pooled: Tensor, named: Array, faint: Array, colours: list[dict[str, str]]) -> Tensor:
        """InfoNCE both ways. Equal sets are positives; a caption that is true but incomplete counts neither way."""
        captions = [
            sentence([scenes.CLASSES[c] for c in self.rng.permutation(np.flatnonzero(row))], hues, self.rng)
            for row, hues in zip(named, colours, strict=True)
        ]
        text = F.normalize(self._encode(captions).float(), dim=-1)
        logits = pooled @ text.T * self.model.logit_scale.exp()
        seen = torch.from_numpy(named | faint)
        rows = torch.from_numpy(named)
        positive = (rows[:, None] == rows[None]).all(-1)
        true_of = ((rows[None] & ~seen[:, None]).sum(-1) == 0) | ((rows[:, None] & ~seen[None]).sum(-1) == 0)
        logits = logits.masked_fill(true_of & ~positive, -1e4)
        loss = torch.zeros(())
        for direction, match in ((logits, positive), (logits.T, positive.T)):
            log_p = direction.log_softmax(-1)
            loss = loss - ((log_p * match).sum(-1) / match.sum(-1)).mean() / 2
        self._note("nce", loss)
        return loss

    def _classify(self, pooled: Tensor, prompts: Tensor, named: Array, faint: Array, name: str) -> Tensor:
        """Balanced sigmoid BCE against the class prompts; classes too small to name count neither way."""
        logits = pooled @ prompts.T * self.extra[0].exp() + self.extra[1]
        target = torch.from_numpy(named).float()
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        wanted = torch.from_numpy(~faint).float()
        positive = (loss * target * wanted).sum() / target.sum()
        negative = (loss * (1 - target) * wanted).sum() / ((1 - target) * wanted).sum()
        self._note(name, positive + negative)
        return positive + 2 * negative

    def _class_prompts(self) -> list[str]:
        templates = (*TEMPLATES["openai80"], *TEMPLATES["thesis7"], "{}", "a {}")
        return [templates[int(self.rng.integers(len(templates)))].format(name) for name in scenes.CLASSES]

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts)
        used = int((tokens != 0).sum(1).max())
        x = self.model.token_embedding(tokens[:, :used]) + self.model.positional_embedding[:used]
        mask = torch.full((used, used), float("-inf")).triu(1)
        for block in self.model.transformer.resblocks:
            x = x + attention(block, block.ln_1(x), mask)
            x = x + block.mlp(block.ln_2(x))
        x = self.model.ln_final(x)
        text: Tensor = x[torch.arange(len(x)), tokens.argmax(-1)] @ self.model.text_projection
        return text

    def _note(self, name: str, value: Tensor) -> None:
        self.losses[name] = 0.97 * self.losses.get(name, value.item()) + 0.03 * value.item()

    def _report(self) -> str:
        self.model.eval()
        score = dense_iou(self)
        self.model.train()
        return f"dev mIoU (vanilla, one window) {score:.3f}  " + "  ".join(
            f"{k} {v:.3f}" for k, v in sorted(self.losses.items())
        )

    def export(self) -> None:
        path = self.out / f"clip-{self.stage}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file({k: v.half().contiguous() for k, v in self.model.state_dict().items()}, temporary)
        temporary.replace(path)


@torch.no_grad()
def dense_iou(trainer: Trainer, count: int = 12) -> float:
    """Plain patch classification on a few dev scenes: enough to see that it learns."""
    pool, visual = trainer.pool, trainer.model.visual
    prompts = F.normalize(trainer._encode([f"a photo of a {name}." for name in scenes.CLASSES]), dim=-1)
    confusion = np.zeros((CLASSES, CLASSES))
    for scene in range(pool.train, pool.train + count):
        h, w = (int(v) // 64 * 64 for v in pool.sizes[scene])
        crops = (
            pool.images[scene, :h, :w]
            .reshape(h // 64, 64, w // 64, 64, 3)
            .transpose(0, 2, 4, 1, 3)
            .reshape(-1, 3, 64, 64)
        )
        images = torch.from_numpy(np.ascontiguousarray(crops)).float() / 255
        images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        features = F.normalize(image_tokens(visual, images, (0, 0))[1], dim=-1)
        labels = (features @ prompts.T).argmax(-1).numpy().repeat(PATCH, 1).repeat(PATCH, 2)
        truth = pool.classes[scene, :h, :w].reshape(h // 64, 64, w // 64, 64).transpose(0, 2, 1, 3).reshape(-1, 64, 64)
        np.add.at(confusion, (truth.ravel(), labels.ravel()), 1)
    overlap = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - overlap
    return float((overlap[union > 0] / union[union > 0]).mean())
