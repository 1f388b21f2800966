"""The arrays of a shard in one NPZ file. They are written and read one at a time, and never pickled.

Members are named `<row>/<name>.npy`. The bytes depend only on the arrays, because zip entries carry no time.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

from ovseg_batch.io.atomic import create
from ovseg_batch.types.arrays import AnyArray

NPY_VERSION = (1, 0)


class ArrayWriter:
    """Streams arrays into an NPZ that `numpy.load` reads too."""

    def __init__(self, path: Path) -> None:
        self._file = create(path)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def write(self, row: int, name: str, array: AnyArray) -> None:
        with self._zip.open(zipfile.ZipInfo(f"{row}/{name}.npy"), "w", force_zip64=True) as member:
            npy.write_array(member, np.ascontiguousarray(array), NPY_VERSION, allow_pickle=False)

    def close(self) -> None:
        with self._file:
            self._zip.close()


class ArrayReader:
    """Opens a shard's NPZ, and reads one array at a time."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def read(self, row: int, name: str) -> AnyArray:
        """Return the array stored for `row` under `name`.

        Raises:
            KeyError: the row has no such array.
            ValueError: `ArrayWriter` did not write it. A compressed array may be larger than memory.
            zipfile.BadZipFile: the file is damaged.
        """
        member = self._zip.getinfo(f"{row}/{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed")
        with self._zip.open(member) as file:
            if npy.read_magic(file) != NPY_VERSION:
                raise ValueError(f"it is not of version {NPY_VERSION} of the format")
            shape, _, dtype = npy.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"its {member.file_size} bytes do not hold {dtype} of the shape {shape}")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)

    def read_all(self, row: int) -> dict[str, AnyArray]:
        """Return the arrays that are stored for `row`, by name."""
        members = [name for name in self._zip.namelist() if name.startswith(f"{row}/")]
        names = [member.partition("/")[2].removesuffix(".npy") for member in members]
        return {name: self.read(row, name) for name in names}

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> ArrayReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
