"""Rows become tables without pandas, as `pyarrow.Table.from_pylist` makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ovseg_batch.io.row_groups import table_of

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("shared", pa.bool_()),
        pa.field("time", pa.timestamp("us")),
        pa.field("grade", pa.decimal128(5, 2)),
    ]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"path": TEXTS},
        optional={
            "title": st.none() | TEXTS,
            "bytes": st.none() | st.integers(-(2**63), 2**63 - 1),
            "width": st.none() | st.integers(-(2**31), 2**31 - 1),
            "score": st.none() | st.floats(),
            "shared": st.none() | st.booleans(),
            "time": st.none() | st.datetimes(),
            "grade": st.none() | st.decimals(-999, 999, places=2),
        },
    ),
    max_size=40,
)


@given(ROWS)
def test_a_table_holds_its_rows(rows: list[dict[str, Any]]) -> None:
    table = table_of(rows, SCHEMA)
    table.validate(full=True)
    expected = pa.Table.from_pylist(rows, SCHEMA)
    assert table.schema == expected.schema
    assert repr(table.to_pylist()) == repr(expected.to_pylist())  # NaN and the sign of zero count


def test_a_dry_run_imports_no_pandas(few_scenes: Path, tmp_path: Path) -> None:
    """It is a test dependency, and `pyarrow.array` would import it."""
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "from ovseg_batch.cli import main; main(sys.argv[1:])"
    run = ("run", few_scenes / "images", "-o", tmp_path / "run", "-c", "demo", "--labels", "sky; tree", "--dry-run")
    done = subprocess.run([sys.executable, "-c", code, *map(str, run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"pandas", "torch", "cv2", "PIL.WebPImagePlugin"} & set(done.stderr.split())
