"""One class token for every mask, all masks of an image in one forward of CLIP.

A copy of the class token joins the ViT for each mask. It attends to the class token and to the patches that its mask
touches; nothing attends to it, so the image's own tokens are what they were. Sources: MaskCLIP of Ding et al., ICML
2023; MasQCLIP, ICCV 2023, which gives these tokens query projections f_Q′ of their own, one a block, the only thing
that is trained. Tested against both codes.
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
POSITION = "mask_embeddings"  # what takes the class token's place in the position embedding


class MaskTokens(nn.Module):
    """Mask class tokens on a frozen image tower.

    Args:
        visual: an open_clip `VisionTransformer` whose class token speaks for the image (`pool_type: tok`).
        tuned: f_Q′ of every block and the position embedding of the tokens start as copies of CLIP's own, and are
            used instead of them; until they are trained or loaded nothing changes.

    Raises:
        OvsegError: the tower averages its patches, so its class token means nothing.
    """

    def __init__(self, visual: Any, tuned: bool = False) -> None:
        super().__init__()
        if visual.pool_type != "tok":
            raise OvsegError(
                "Mask tokens need a CLIP whose class token speaks for the image; this one averages its patches. "
                "Of the embedded models clip.model: demo-token is one."
            )
        self._tower = (visual,)  # in a tuple: frozen, and no part of this module's parameters
        self.queries: nn.ModuleList | None = None
        if tuned:
            width = visual.ln_pre.normalized_shape[0]
            self.queries = nn.ModuleList(nn.Linear(width, width) for _ in visual.transformer.resblocks)
            for query, block in zip(self.queries, visual.transformer.resblocks, strict=True):
                own = {"weight": block.attn.in_proj_weight[:width], "bias": block.attn.in_proj_bias[:width]}
                query.load_state_dict({name: value.detach() for name, value in own.items()})
            self.mask_embeddings = nn.Parameter(visual.positional_embedding[0].detach().clone())

    def forward(self, images: Tensor, touched: Tensor) -> Tensor:
        """The embedding of every mask.

        Args:
            images: (B, 3, H, W) as CLIP takes them.
            touched: (B, M, gh, gw) bool, the patches of each mask; `touched_patches`.

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
        """The tuned parameters under the names of MasQCLIP's own checkpoints."""
        assert self.queries is not None
        state = {f"masqclip.{POSITION}": self.mask_embeddings.detach().clone()}
        for index, query in enumerate(self.queries):
            for kind in ("weight", "bias"):
                name = f"masqclip.visual.transformer.resblocks.{index}.attn.new_q_proj.{kind}"
                state[name] = getattr(query, kind).detach().clone()
        return state


def load_tuned(visual: Any, file: str) -> MaskTokens:
    """Mask tokens with the query projections of a file in the layout of MasQCLIP's checkpoints.

    Raises:
        OvsegError: a file that cannot be trusted or read, without such projections, or of another CLIP.
    """
    tokens = MaskTokens(visual, tuned=True)
    state = _renamed(read_state_dict(file))
    if not state:
        raise OvsegError(f"{file} holds no query projections (…visual.transformer.resblocks.0.attn.new_q_proj.weight).")
    load_weights(tokens, state, file, "the query projections of this CLIP")
    return tokens.eval().to(visual.proj.device)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names as this module's; everything else of a checkpoint is left out."""
    renamed = {}
    for name, value in state.items():
        found = PUBLISHED.fullmatch(name)
        if found:
            renamed[f"queries.{found[1]}.{found[2]}"] = value.float()
        elif name.rpartition(".")[2] == POSITION:
            renamed[POSITION] = value.float()
    return renamed


def touched_patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches that each mask touches with a pixel or more: (M, H, W) bool → (M, gh, gw) bool."""
    return F.adaptive_max_pool2d(masks[None].float(), grid)[0] > 0
