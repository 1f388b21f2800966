"""Region maps that were made beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovseg_batch.errors import RowError
from ovseg_batch.io.region_maps import read_region_map

MAP = np.array([[0, 3], [7, 7], [3, 0]])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_a_map_is_found_by_the_name_of_its_image(kind: Any, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "2007_000033.npz", instance_mask=MAP.astype(kind))
    found = read_region_map(tmp_path, "JPEGImages/2007_000033.jpg", (3, 2))
    assert found.dtype == np.int32 and found.tolist() == MAP.tolist()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no region map"),
        (b"", "no readable array instance_mask"),
        (b"text", "no readable array instance_mask"),
        ({"masks": MAP}, "no readable array instance_mask"),
        ({"instance_mask": np.array([{}], object)}, "no readable array instance_mask"),
        ({"instance_mask": MAP.T}, "has the shape 2 x 3, and the image has 3 x 2"),
        ({"instance_mask": MAP.astype(float)}, "does not hold whole numbers"),
        ({"instance_mask": -MAP}, "does not hold whole numbers"),
        ({"instance_mask": MAP + 2**40}, "does not hold whole numbers"),
    ],
)
def test_a_wrong_map_fails_its_image(content: bytes | dict[str, Any] | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(RowError, match=expected):
        read_region_map(tmp_path, "one.png", (3, 2))
