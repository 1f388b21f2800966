"""Attention variants: each equals its formula with full matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ovseg_batch.methods.attention import VARIANTS, attend, neighbourhood


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str) -> torch.Tensor:
    """Return the result of a formula, written out with full attention matrices."""
    scale = q.shape[-1] ** -0.5
    qk, qq, kk = ((a @ b.transpose(-1, -2) * scale) for a, b in ((q, k), (q, q), (k, k)))
    weights: dict[str, Callable[[], torch.Tensor]] = {
        "vanilla": lambda: qk.softmax(-1),
        "maskclip": lambda: torch.eye(q.shape[-2]),
        "maskclip-reduced": lambda: torch.eye(q.shape[-2]),
        "v2": lambda: 2 * torch.eye(q.shape[-2]),
        "csa": lambda: qq.softmax(-1) + kk.softmax(-1),
        "csa-joint": lambda: (qq + kk).softmax(-1),
        "clearclip": lambda: qq.softmax(-1),
        "naclip": lambda: kk.softmax(-1),
        "itaclip": lambda: qq.softmax(-1) + kk.softmax(-1),
    }
    return weights[name]() @ v


@pytest.mark.parametrize("name", list(VARIANTS))
def test_attention_equals_its_formula(name: str) -> None:
    q, k, v = torch.randn(3, 2, 4, 17, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attend(q, k, v, VARIANTS[name]), reference(q, k, v, name), atol=1e-5)


def test_the_neighbourhood_is_a_gaussian_of_the_distance_and_leaves_the_class_token_out() -> None:
    prior = neighbourhood((3, 5), 2.0)
    assert prior.shape == (16, 16) and prior[0].abs().sum() == prior[:, 0].abs().sum() == 0
    first, second = 1 + 0 * 5 + 1, 1 + 2 * 5 + 4  # patches (0, 1) and (2, 4)
    assert prior[first, second].item() == pytest.approx(np.exp(-(2**2 + 3**2) / 8))
    assert (prior.diagonal()[1:] == 1).all() and torch.equal(prior, prior.T)


def test_blocks_below_give_half_of_the_weights() -> None:
    q, k, v, r, s = torch.randn(5, 2, 4, 17, 16, generator=torch.Generator().manual_seed(0))
    own, other = (reference(a, b, v, "itaclip") for a, b in ((q, k), (r, s)))
    fused = attend(q, k, v, VARIANTS["itaclip"], below=[(r, s)])
    assert torch.allclose(fused, (own + other) / 2, atol=1e-5)
