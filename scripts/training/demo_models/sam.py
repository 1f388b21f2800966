"""Train the small SAM2: one point in, the whole thing (or the connected piece of stuff) out.

Left alone it sits on a plateau where the point is ignored. Three helps, none of them part of the model: class heads on
the stride-16 and stride-8 features, a class head on the mask tokens (what is at the point?), and a decoder that starts
by looking where the point is (`listen_to_points`). Targets are coverage fractions at the mask's own resolution, so
edges are learnt finer than its pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo_models.clock import Clock
from demo_models.pool import Pool
from ovseg_batch import scenes

Array = np.ndarray[Any, Any]

POINTS = 12  # prompts an image
SMALLEST_PIECE = 0.001  # of the image: the pipeline prompts nothing smaller
SCHEDULE = ((0.1, 128, 6), (0.35, 128, 16), (1.0, 256, 8))  # until this share of the time: pixels a side, images
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(config: Path) -> Any:
    tree = OmegaConf.load(config)
    OmegaConf.resolve(tree)
    return instantiate(tree.model, _recursive_=True)


def listen_to_points(model: Any) -> None:
    """Start the decoder where every token looks at the point's surroundings.

    At this width a head has six dimensions, and random projections let none of the point's position through. Here the
    first self-attention passes it on to all tokens as it is, and with equal projections for queries and keys two
    positions' encodings match best where they are near each other.
    """
    decoder = model.sam_mask_decoder
    embeddings = [*model.sam_prompt_encoder.point_embeddings, model.sam_prompt_encoder.not_a_point_embed]
    for embedding in [*embeddings, decoder.mask_tokens, decoder.iou_token, decoder.obj_score_token]:
        embedding.weight.data.mul_(0.2)
    first = decoder.transformer.layers[0].self_attn
    for projection in (first.v_proj, first.out_proj):
        nn.init.eye_(projection.weight)
    attentions = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        attention.k_proj.weight.data.mul_(4.0)
        attention.q_proj.load_state_dict(attention.k_proj.state_dict())
        attention.out_proj.weight.data.mul_(3.0)


class Batch:
    """Images, points and what each point should give."""

    def __init__(
        self, pool: Pool, rng: np.random.Generator, side: int, count: int, chosen: range | None = None
    ) -> None:
        chosen = chosen or range(pool.train)
        self.images = np.empty((count, side, side, 3), np.uint8)
        self.classes = np.empty((count, side // 8, side // 8), np.uint8)
        self.points = np.empty((count, POINTS, 2), np.float32)
        self.target_classes = np.empty((count, POINTS), np.uint8)  # the class at the point
        self.targets = np.empty((count, POINTS, side // 4, side // 4), np.float32)
        for k in range(count):
            scene = int(rng.integers(chosen.start, chosen.stop))
            h, w = pool.sizes[scene]
            flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
            image, classes, instances = (
                np.ascontiguousarray(part[scene, :h, :w][:, flip])
                for part in (pool.images, pool.classes, pool.instances)
            )
            self.images[k] = cv2.resize(
                image, (side, side), interpolation=cv2.INTER_LINEAR if side >= h else cv2.INTER_AREA
            )
            self.classes[k] = cv2.resize(classes, (side // 8, side // 8), interpolation=cv2.INTER_NEAREST)
            for p in range(POINTS):
                mask, (x, y) = _prompt(classes, instances, rng)
                self.target_classes[k, p] = classes[y, x]
                self.points[k, p] = (x + 0.5) * side / w, (y + 0.5) * side / h
                self.targets[k, p] = cv2.resize(
                    mask.astype(np.float32), (side // 4, side // 4), interpolation=cv2.INTER_AREA
                )

    def tensors(self, rng: np.random.Generator) -> Tensor:
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255
        images = images * torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1))).float()
        return (images - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None]


def _prompt(classes: Array, instances: Array, rng: np.random.Generator) -> tuple[Array, tuple[int, int]]:
    """A random thing (two times in three, when there is one) or piece of stuff, and a point in it.

    Pieces count alike whatever their size: chosen by area, the slivers between things were never learnt.
    Half of the points are deep inside, as the pipeline's are; the others are anywhere in the mask.
    """
    present = np.unique(instances)[1:]
    if len(present) and rng.random() < 0.67:
        mask = instances == present[int(rng.integers(len(present)))]
    else:
        stuff = np.where(instances == 0, classes, 255)
        here = [c for c in np.unique(stuff) if c != 255]
        chosen = (stuff == here[int(rng.integers(len(here)))]).astype(np.uint8)
        _, pieces, boxes, _ = cv2.connectedComponentsWithStats(chosen, connectivity=8)
        areas = boxes[1:, cv2.CC_STAT_AREA]
        large = np.flatnonzero(areas >= min(SMALLEST_PIECE * chosen.size, areas.max()))
        mask = pieces == 1 + large[int(rng.integers(len(large)))]
    if rng.random() < 0.5:
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
        ys, xs = np.nonzero(depth >= depth.max() * rng.uniform(0.5, 1.0))
    else:
        ys, xs = np.nonzero(mask)
    k = int(rng.integers(len(ys)))
    return mask, (int(xs[k]), int(ys[k]))


class Trainer:
    def __init__(self, pool: Pool, out: Path, state: Path, minutes: float, seed: int, peak: float) -> None:
        torch.manual_seed(seed)
        self.pool, self.out = pool, out
        self.model = build(out / "sam2.yaml")
        width = self.model.hidden_dim
        self.heads = nn.ModuleList(
            [
                nn.Conv2d(width, len(scenes.CLASSES), 1),
                nn.Conv2d(width // 4, len(scenes.CLASSES), 1),
                nn.Linear(width, len(scenes.CLASSES)),
            ]
        )
        self.used = [
            p
            for name, p in self.model.named_parameters()
            if not name.startswith(("memory_", "obj_ptr", "mask_downsample"))
        ]
        parameters = [*self.used, *self.heads.parameters()]
        self.peak = peak
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            self.peak,
            (0.9, 0.98),
        )
        self.clock = Clock(state / "sam.pt", minutes, self._state)
        saved = self.clock.resume()
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.heads.load_state_dict(saved["heads"])
            self.optimiser.load_state_dict(saved["optimiser"])
        else:
            listen_to_points(self.model)
        self.rng = np.random.default_rng([seed, self.clock.step])
        self.notes: dict[str, float] = {}

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def train(self) -> None:
        exported = self.clock.spent
        for _ in self.clock.steps(self._report):
            side, count = next(size for until, *size in SCHEDULE if self.clock.fraction <= until)
            for group in self.optimiser.param_groups:
                group["lr"] = self.clock.rate(self.peak)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self._loss(Batch(self.pool, self.rng, side, count), side)
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.used, 1.0)
            self.optimiser.step()
            if self.clock.spent - exported > 240:
                self.export()
                exported = self.clock.spent
        self.export()

    def forward(self, images: Tensor, points: Tensor, side: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Masks (B·P, 4, s/4, s/4), rated IoU (B·P, 4), and features: strides 16 and 8, mask tokens (B·P, 4, C)."""
        model, count = self.model, points.shape[1]
        encoder = model.sam_prompt_encoder
        encoder.input_image_size, encoder.image_embedding_size = (side, side), (side // 16, side // 16)
        with sdpa_kernel(SDPBackend.MATH):
            features = model.forward_image(images)
        fine, middle, coarse = features["backbone_fpn"]
        embedding = coarse + model.no_mem_embed.reshape(1, -1, 1, 1)
        labels = torch.ones(points.shape[0] * count, 1, dtype=torch.int32)
        sparse, dense = encoder(points=(points.reshape(-1, 1, 2), labels), boxes=None, masks=None)
        with sdpa_kernel(SDPBackend.MATH):  # the fused one's backward takes half of a step on a CPU
            masks, rated, tokens, _ = model.sam_mask_decoder.predict_masks(
                image_embeddings=embedding.repeat_interleave(count, 0),
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                repeat_image=False,
                high_res_features=[fine.repeat_interleave(count, 0), middle.repeat_interleave(count, 0)],
            )
        return masks, rated, [coarse, middle, tokens]

    def _loss(self, batch: Batch, side: int) -> Tensor:
        masks, rated, features = self.forward(batch.tensors(self.rng), torch.from_numpy(batch.points), side)
        masks, rated = masks.float(), rated.float()
        target = torch.from_numpy(batch.targets).flatten(0, 1)[:, None]
        probability = masks.sigmoid()
        bce = F.binary_cross_entropy_with_logits(masks, target.expand_as(masks), reduction="none")
        focal = (bce * (probability - target).abs() ** 2).mean((-2, -1))
        overlap = (probability * target).sum((-2, -1))
        dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
        each = 4 * focal + dice + 0.5 * bce.mean((-2, -1))
        with torch.no_grad():
            drawn, wanted = masks > 0, target > 0.5
            both = (drawn & wanted).sum((-2, -1))
            iou = both / (drawn | wanted).sum((-2, -1)).clamp(min=1)
        best = each[:, 1:].argmin(1, keepdim=True)
        loss = each[:, 0].mean() + each[:, 1:].gather(1, best).mean() + 0.1 * each[:, 1:].mean()
        rating = (rated - iou).abs().mean()
        truth = torch.from_numpy(batch.classes).long()
        seen = self.heads[1](features[1].float())
        coarse = self.heads[0](features[0].float())
        helped = F.cross_entropy(seen, truth) + F.cross_entropy(coarse, truth[:, ::2, ::2])
        logits = self.heads[2](features[2].float())
        target_classes = torch.from_numpy(batch.target_classes).long().flatten()[:, None].expand(-1, logits.shape[1])
        named = F.cross_entropy(logits.flatten(0, 1), target_classes.flatten())
        rms = features[0].float().pow(2).mean().sqrt()
        self._note("loss", loss)
        self._note("rating", rating)
        self._note("class", helped)
        self._note("named", named)
        self._note("iou0", iou[:, 0].float().mean())
        chosen = rated[:, 1:].argmax(1, keepdim=True)
        self._note("iou-best", iou[:, 1:].float().gather(1, chosen).mean())
        return loss + rating + 0.3 * helped + 1.0 * named + 0.5 * F.relu(rms - 0.5)

    def _note(self, name: str, value: Tensor) -> None:
        self.notes[name] = 0.97 * self.notes.get(name, value.item()) + 0.03 * value.item()

    def _report(self) -> str:
        return f"dev IoU {self.dev_iou():.3f}  " + "  ".join(f"{k} {v:.3f}" for k, v in sorted(self.notes.items()))

    @torch.no_grad()
    def dev_iou(self, count: int = 12) -> float:
        """One point, the best-rated of three masks, mean IoU over prompts of the dev scenes."""
        rng = np.random.default_rng(1)
        self.model.eval()
        batch = Batch(self.pool, rng, 256, count, range(self.pool.train, len(self.pool.sizes)))
        masks, rated, _ = self.forward(batch.tensors(np.random.default_rng(0)), torch.from_numpy(batch.points), 256)
        self.model.train()
        drawn = (masks[torch.arange(len(masks)), 1 + rated[:, 1:].argmax(1)] > 0).numpy()
        wanted = batch.targets.reshape(drawn.shape) > 0.5
        return float(((drawn & wanted).sum((1, 2)) / np.maximum((drawn | wanted).sum((1, 2)), 1)).mean())

    def export(self) -> None:
        path = self.out / "sam2.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file({k: v.half().contiguous() for k, v in self.model.state_dict().items()}, temporary)
        temporary.replace(path)
