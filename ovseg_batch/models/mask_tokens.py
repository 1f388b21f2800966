"""One class token per mask. All masks of an image use a single forward pass of CLIP.

A copy of the class token is added to the ViT for each mask. It attends to the class token and to the patches that its
mask touches. No token attends to it, so the other tokens do not change. Sources: Ding et al., Open-Vocabulary Universal
Image Segmentation with MaskCLIP, ICML 2023; Xu et al., MasQCLIP for Open-Vocabulary Universal Image Segmentation, ICCV
2023. MasQCLIP trains separate query projections f_Q′ of these tokens, one per block. The results are tested against
both codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg_batch.errors import OvsegError
from ovseg_batch.models.vit import attend_from, embed, run_block
from ovseg_batch.models.weights import load_weights, read_state_dict

PUBLISHED = re.compile(r"(?:.*\.)?visual\.transformer\.resblocks\.(\d+)\.attn\.new_q_proj\.(weight|bias)")
POSITION = "mask_embeddings"  # replaces the class token in the position embedding


class MaskTokens(nn.Module):
    """Mask class tokens on a frozen image tower.

    Args:
        visual: an open_clip `VisionTransformer` whose class token represents the image (`pool_type: tok`).
        tuned: use separate query projections f_Q′ and a separate position embedding of the mask tokens. They start as
            copies of CLIP's, so results change only after training or loading.

    Raises:
        OvsegError: the tower averages its patches, so its class token is not trained.
    """

    def __init__(self, visual: Any, tuned: bool = False) -> None:
        super().__init__()
        if visual.pool_type != "tok":
            raise OvsegError(
                "Mask tokens need a CLIP whose class token represents the image; this one averages its patches. "
                "Of the embedded models, set clip.model: demo-token."
            )
        self._tower = (visual,)  # in a tuple, so that its frozen parameters are not registered
        self.queries: nn.ModuleList | None = None
        if tuned:
            width = visual.ln_pre.normalized_shape[0]
            self.queries = nn.ModuleList(nn.Linear(width, width) for _ in visual.transformer.resblocks)
            for query, block in zip(self.queries, visual.transformer.resblocks, strict=True):
                own = {"weight": block.attn.in_proj_weight[:width], "bias": block.attn.in_proj_bias[:width]}
                query.load_state_dict({name: value.detach() for name, value in own.items()})
            self.mask_embeddings = nn.Parameter(visual.positional_embedding[0].detach().clone())

    def forward(self, images: Tensor, touched: Tensor) -> Tensor:
        """Compute the embedding of every mask.

        Args:
            images: (B, 3, H, W), normalised for CLIP.
            touched: (B, M, gh, gw) bool, the patches of each mask, from `touched_patches`.

        Returns:
            (B, M, D) float32, L2-normalised.
        """
        [visual] = self._tower
        with torch.no_grad():
            x = embed(visual, images)
        position = visual.positional_embedding[0] if self.queries is None else self.mask_embeddings
        first = visual.ln_pre(visual.class_embedding + position).to(x.dtype)
        tokens = first.expand(*touched.shape[:2], -1)
        allowed = F.pad(touched.flatten(2), (1, 0), value=True)
        for index, block in enumerate(visual.transformer.resblocks):
            query = None if self.queries is None else self.queries[index]
            tokens = attend_from(block, tokens, x, allowed, query)
            with torch.no_grad():
                x = run_block(block, x)
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    def published_state(self) -> dict[str, Tensor]:
        """Return the tuned parameters under the names of MasQCLIP's checkpoints."""
        assert self.queries is not None
        state = {f"masqclip.{POSITION}": self.mask_embeddings.detach().clone()}
        for index, query in enumerate(self.queries):
            for kind in ("weight", "bias"):
                name = f"masqclip.visual.transformer.resblocks.{index}.attn.new_q_proj.{kind}"
                state[name] = getattr(query, kind).detach().clone()
        return state


def load_tuned(visual: Any, file: str) -> MaskTokens:
    """Load mask tokens with the query projections of a file in the layout of MasQCLIP's checkpoints.

    Raises:
        OvsegError: the file cannot be trusted or read, has no such projections, or belongs to another CLIP.
    """
    tokens = MaskTokens(visual, tuned=True)
    state = _renamed(read_state_dict(file))
    if not state:
        raise OvsegError(f"{file} holds no query projections (…visual.transformer.resblocks.0.attn.new_q_proj.weight).")
    load_weights(tokens, state, file, "the query projections of this CLIP")
    return tokens.eval().to(visual.proj.device)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published parameters to the names of this module. Other entries of a checkpoint are dropped."""
    renamed = {}
    for name, value in state.items():
        found = PUBLISHED.fullmatch(name)
        if found:
            renamed[f"queries.{found[1]}.{found[2]}"] = value.float()
        elif name.rpartition(".")[2] == POSITION:
            renamed[POSITION] = value.float()
    return renamed


def touched_patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patches that each mask touches with at least one pixel: (M, H, W) bool → (M, gh, gw) bool."""
    return F.adaptive_max_pool2d(masks[None].float(), grid)[0] > 0
