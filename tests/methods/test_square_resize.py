"""Squares for OWLv2 are those of the image processor of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.owlv2.image_processing_owlv2 import Owlv2ImageProcessor

from ovseg_batch import scenes
from ovseg_batch.methods.square_resize import square_resized, square_taps


@pytest.mark.parametrize(
    ("size", "side"),
    [((192, 192), 96), ((150, 200), 96), ((700, 300), 96), ((60, 40), 96), ((96, 20), 96), ((1, 9), 8)],
)
def test_the_image_processor_of_transformers_gives_the_same(size: tuple[int, int], side: int) -> None:
    image = np.resize(scenes.render(3).image, (*size, 3))
    processor = Owlv2ImageProcessor(size={"height": side, "width": side}, do_normalize=False)
    theirs = processor(images=image, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
    ours = square_resized(image, side, torch.device("cpu"))
    assert ours.shape == (3, side, side) and torch.allclose(ours, theirs, atol=3e-6, rtol=0)


def test_weights_of_a_sample_sum_to_one_but_for_the_padding() -> None:
    taps = square_taps(length=50, square=100, side=20)
    sums = taps.weights.sum(dim=1)
    assert torch.allclose(sums[:8], torch.ones(8)) and not sums[13:].any() and 0.3 < sums[9:11].mean() < 0.7
    assert int(taps.places.max()) < 50
