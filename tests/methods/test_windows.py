"""Windows over an image: resized sizes, the last window, and stitching."""

from __future__ import annotations

import pytest
import torch

from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.windows import resized_size, window_boxes


@pytest.mark.parametrize(
    ("size", "short", "result"),
    [
        ((500, 375), 336, (448, 336)),
        ((100, 1000), 336, (205, 2048)),
        ((333, 500), None, (333, 500)),
        ((1000, 4096), None, (500, 2048)),
    ],
)
def test_resize_keeps_proportions_and_the_long_side(
    size: tuple[int, int], short: int | None, result: tuple[int, int]
) -> None:
    assert resized_size(*size, short, 2048) == result


def test_last_window_is_shifted_back_inside() -> None:
    assert window_boxes(336, 500, 224, 112).tolist() == [
        [y, x, y + 224, x + 224] for y in (0, 112) for x in (0, 112, 224, 276)
    ]
    assert window_boxes(100, 300, 224, 112).tolist() == [[0, 0, 100, 224], [0, 76, 100, 300]]


def test_stitching_constant_windows_is_their_mean() -> None:
    boxes = window_boxes(4, 6, 4, 2)
    out = Stitched(torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 2, 2), boxes, (4, 6)).whole()
    assert out[0, 0].tolist() == [1, 1, 2, 2, 3, 3]
