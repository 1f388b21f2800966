"""What the details of an image hold: outlines, the dense map on a grid, and which files a browser shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import points_in_poly

from ovseg_batch.errors import FailureCode
from ovseg_batch.io import rle
from ovseg_batch.methods.labelling import resampled
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.report.advice import ADVICE
from ovseg_batch.report.dense_maps import stitched_at
from ovseg_batch.report.dense_view import cells_of, classes_within
from ovseg_batch.report.originals import browsers_show
from ovseg_batch.report.outlines import path_of, space_of
from ovseg_batch.types import Annotation, ImageRow
from ovseg_batch.types.arrays import Mask


def annotation(mask: Mask) -> Annotation:
    counts, size = rle.encode(mask), mask.shape
    box = tuple(rle.bounding_box(counts, *size))
    return Annotation("car", 0.9, box, rle.area(counts, *size), counts, "sam", 0.8, 0.7)


def filled(path: str, shape: tuple[int, int]) -> Mask:
    """The pixels whose centre an odd number of subpaths surrounds."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    points, inside = np.stack([x.ravel(), y.ravel()], axis=1), np.zeros(shape[0] * shape[1], bool)
    for part in path.split("z")[:-1]:
        start, moves = part.removeprefix("M").split("l")
        steps = [start.split(), *np.reshape([int(n) for n in re.findall(r"-?\d+", moves)], (-1, 2)).tolist()]
        inside ^= points_in_poly(points, np.array(steps, float).cumsum(axis=0))
    return inside.reshape(shape)


def ring(size: int) -> Mask:
    y, x = np.mgrid[:size, :size] - size / 2
    distance = np.hypot(x, y)
    mask: Mask = (distance < 0.4 * size) & (distance > 0.2 * size)
    return mask


def test_a_path_surrounds_the_mask_and_its_hole() -> None:
    mask = ring(200)
    path = path_of(annotation(mask), (200, 200))
    assert path.count("M") == 2 and len(path) < 1200
    assert (filled(path, (200, 200)) ^ mask).sum() < 0.02 * mask.sum()


def test_paths_of_large_images_are_in_the_coordinates_of_the_rendition() -> None:
    mask = np.zeros((3000, 6000), bool)
    mask[600:1500, 900:3000] = True
    mask[2990, 5990] = True
    assert space_of(mask.shape) == (1024, 2048)
    path = path_of(annotation(mask), (3000, 6000))
    inside = filled(path.split("z")[0] + "z", (1024, 2048))
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert [rows[0], rows[-1], columns[0], columns[-1]] == pytest.approx([205, 511, 307, 1023], abs=1)
    single = np.zeros((3000, 6000), bool)
    single[2990, 5990] = True
    assert path_of(annotation(single), (3000, 6000))


def test_the_grid_equals_the_stitched_map_where_windows_agree() -> None:
    """Windows of one smooth map: its values at the centres of the grid."""
    size, cells = (160, 224), (7, 10)
    boxes = window_boxes(*size, 112, 56)
    centres = [(np.arange(14) + 0.5) * 8, (np.arange(14) + 0.5) * 8]
    logits = torch.stack(
        [
            torch.from_numpy(np.stack([np.add.outer(y0 + centres[0], 2 * (x0 + centres[1])), np.full((14, 14), 3.0)]))
            for y0, x0, _, _ in boxes.tolist()
        ]
    )
    found = stitched_at(logits, boxes, size, cells)
    expected = resampled(Stitched(logits, boxes, size), (0, 0, size[1], size[0]), size, cells)
    assert found.shape == (2, *cells)
    assert torch.allclose(found, expected, atol=6.0)  # bilinear values are constant within half a cell of an edge
    assert torch.allclose(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=2.5)


def test_cells_are_runs_of_the_best_class_and_the_runner_up() -> None:
    probabilities = np.zeros((3, 2, 4), np.float32)
    probabilities[0], probabilities[1], probabilities[2] = 0.5, 0.3, 0.2
    probabilities[2, 1, 2:] = 0.9
    h, w, runs = cells_of(probabilities)
    assert (h, w) == (2, 4) and runs == [6, 0, 1, 2, 2, 0]
    mask = np.zeros((20, 40), bool)
    mask[12:20, 22:40] = True
    tiny = np.zeros((20, 40), bool)
    tiny[1, 1] = True
    found = classes_within([annotation(mask), annotation(tiny)], (20, 40), probabilities)
    assert found == [[(2, 900), (0, 500)], [(0, 500), (1, 300)]]


def test_which_files_a_browser_shows(tmp_path: Path, variants: dict[str, Path]) -> None:
    def row(path: Path) -> ImageRow:
        return ImageRow(0, path.name, path.name, str(path), path.stat().st_size, path.stat().st_mtime_ns)

    picture = Image.new("RGB", (30, 20), "red")
    for name in ("a.jpg", "a.png", "a.webp", "a.gif"):
        picture.save(tmp_path / name)
        assert browsers_show(row(tmp_path / name)), name
    for name in ("a.tiff", "a.bmp"):
        picture.save(tmp_path / name)
        assert not browsers_show(row(tmp_path / name)), name
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (30, 20), "blue")])
    (tmp_path / "text.jpg").write_text("no image")
    assert not any(browsers_show(row(tmp_path / name)) for name in ("cmyk.jpg", "moving.gif", "text.jpg"))
    changed = row(tmp_path / "a.png")
    Image.new("RGB", (31, 20), "blue").save(tmp_path / "a.png")
    assert not browsers_show(changed)
    (tmp_path / "a.jpg").unlink()
    assert not browsers_show(ImageRow(0, "a", "a", str(tmp_path / "a.jpg")))
    assert not browsers_show(ImageRow(0, "a", "a", str(tmp_path)))
    for path in variants.values():
        browsers_show(row(path))  # no variant raises an error


def test_every_reason_of_a_failure_has_an_advice() -> None:
    assert set(ADVICE) == set(FailureCode)
