"""What edits are made of, without a stage: alpha and clean colours, laying in, fills."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from skimage import data as photographs

from ovseg_batch import scenes
from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.evaluate.matting import alpha_errors, composite_error
from ovseg_batch.methods.blending import blend, feathered, frame_around, seamless, widened
from ovseg_batch.methods.crops import isolated_crop
from ovseg_batch.methods.fills import blurred, closed, covering
from ovseg_batch.methods.matting import soften
from ovseg_batch.methods.placed_mask import PlacedMask
from tests.harness.image_variants import disc

# --- alpha -----------------------------------------------------------------------------------------------------------


def test_soft_alpha_and_clean_colours_are_nearer_to_the_truth() -> None:
    """On rendered things with the mask exact to the pixel: hard, soft, soft with clean colours."""
    found: dict[str, list[float]] = {"hard": [], "soft": [], "clean": []}
    sums: dict[str, list[float]] = {"hard": [], "soft": []}
    for seed in scenes.HELD_OUT_SEEDS[3100:3120]:
        scene = scenes.render(seed)
        if not scene.things:
            continue
        truth = scenes.cut_out(seed, range(1, 9))
        hard, _ = soften(scene.image, scene.instances > 0, 0)
        soft, clean = soften(scene.image, scene.instances > 0, 2)
        for name, alpha, colours in (("hard", hard, scene.image), ("soft", soft, scene.image), ("clean", soft, clean)):
            error = composite_error(colours / 255, alpha / 255, truth.colour / 255, truth.alpha)
            found[name].append(error)
        for name, alpha in (("hard", hard), ("soft", soft)):
            sums[name].append(alpha_errors(alpha / 255, truth.alpha)["SAD"])
    assert np.mean(sums["soft"]) < np.mean(sums["hard"])
    assert np.mean(found["clean"]) < np.mean(found["soft"]) < np.mean(found["hard"])


def test_alpha_of_two_flat_colours_is_their_mixture() -> None:
    share = cv2.GaussianBlur(disc(120, 160).astype(np.float32), (0, 0), 1.2)
    front, back = np.array([220, 40, 30.0]), np.array([20, 90, 200.0])
    image = np.rint(share[..., None] * front + (1 - share[..., None]) * back).astype(np.uint8)
    alpha, colours = soften(image, disc(120, 160), 4)
    assert np.abs(alpha / 255 - share).max() < 0.06
    mixed = (alpha > 20) & (alpha < 255)
    assert np.abs(colours[mixed].astype(float) - front).max() < 12  # none of the blue is left
    assert np.array_equal(colours[~((alpha > 0) & (alpha < 255))], image[~((alpha > 0) & (alpha < 255))])


def test_alpha_does_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = photographs.astronaut(), disc(512, 512, radius=0.3)
    whole = soften(image, mask, 3)
    monkeypatch.setattr("ovseg_batch.methods.matting.TILE", 100)
    for one, other in zip(whole, soften(image, mask, 3), strict=True):
        assert np.array_equal(one, other)


def test_sixteen_bits_give_the_same_alpha() -> None:
    image, mask = photographs.astronaut(), disc(512, 512)
    eight, _ = soften(image, mask, 3)
    sixteen, _ = soften(image.astype(np.uint16) * 257, mask, 3)
    assert np.abs(sixteen / 257 - eight.astype(float)).max() <= 1


def test_the_true_alpha_of_a_scene_is_what_was_rendered() -> None:
    """Things on black plus the rest of their share of another scene is the scene, but for grain."""
    scene = scenes.render(scenes.HELD_OUT_SEEDS[3001])
    cut = scenes.cut_out(scene.seed, range(1, 9))
    assert ((cut.alpha > 0.5) == (scene.instances > 0)).mean() > 0.995
    inside = cut.alpha > 0.999
    assert np.abs(cut.colour[inside].clip(0, 255) - scene.image[inside]).mean() < 6  # σ of the grain is 6 at most


# --- laying in -------------------------------------------------------------------------------------------------------


def test_blending_changes_no_bit_outside() -> None:
    image = photographs.astronaut()
    region = widened(disc(512, 512), 7)
    out = blend(image, 255 - image, feathered(region, 4))
    assert np.array_equal(out[~region], image[~region])
    assert np.array_equal(out[disc(512, 512)], (255 - image)[disc(512, 512)])
    assert not np.array_equal(out, image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_was_painted_meets_what_is_around(dtype: type) -> None:
    """A tint that grows to the right is removed from a painting; with nothing around it, nothing changes."""
    image = photographs.astronaut().astype(dtype)
    tint = np.linspace(10, 40, 512, dtype=np.float32)[None, :, None] * np.array([1, -0.5, 0.2], np.float32)
    painted = image.astype(np.float32) + tint
    hole = disc(512, 512, radius=0.2)
    met = seamless(image, painted, ~hole)
    assert np.abs(met - image)[~hole].max() < 1e-3
    assert np.abs(met - image)[hole].max() < 0.25 * np.abs(tint).max()
    assert np.array_equal(seamless(image, painted, np.zeros_like(hole)), painted)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (97, 101)])
@pytest.mark.parametrize("box", [(0, 0, 5, 5), (30, 30, 40, 40), (0, 0, 40, 40)])
def test_a_frame_puts_back_what_it_took(shape: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    for padding in (0.0, 0.5, 3.0):
        frame = frame_around(mask, padding, 64)
        square = frame.cut(image)
        assert square.shape == (frame.side, frame.side, 3)
        assert frame.cut(mask).sum() >= mask.sum()
        copy = np.zeros_like(image)
        frame.put(copy, square)
        assert np.array_equal(copy[mask], image[mask])


def test_a_blur_takes_no_colour_from_what_is_kept() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    image[40:60, 40:60] = (255, 0, 0)
    only = np.ones((100, 100), bool)
    only[35:65, 35:65] = False
    assert np.array_equal(blurred(image, 9.0, only), np.full((100, 100, 3), 200, np.uint8))
    assert blurred(image, 9.0)[50, 50, 1] < 200


def test_a_hole_is_closed_from_its_edges() -> None:
    image = np.full((2000, 1200, 3), 90, np.uint8)
    hole = disc(2000, 1200, radius=0.1)
    image[hole] = 255
    apart = np.abs(closed(image, hole)[hole].astype(int) - 90)
    assert apart.max() < 16  # OpenCV's Telea drifts by up to 7 even between equal colours; the hole was 165 away


def test_a_strip_does_not_decide_how_much_memory_is_taken() -> None:
    """Squares around its masks, and a picture that covers it, would have the square of its length."""
    mask = np.ones((65_536, 1), bool)
    for square in (
        lambda: frame_around(mask, 0.0, 64),
        lambda: isolated_crop(np.zeros((65_536, 1, 3), np.uint8), PlacedMask.crop(mask), (0, 0, 0), 0.0),
    ):
        with pytest.raises(RowError, match="strip of 1 × 65536") as caught:
            square()
        assert caught.value.code is FailureCode.TOO_LARGE
    assert frame_around(np.ones((20_000, 1_200), bool), 0.1, 64).side == 24_000  # of a panorama
    behind = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    tracemalloc.start()
    covered = covering(behind, 65_536, 1)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert covered.shape == (65_536, 1, 3)
    assert np.abs(covered[[0, -1], 0].astype(int) - behind[[0, -1], 29].astype(int)).max() < 60
