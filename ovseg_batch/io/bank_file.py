"""A memory bank on disk: features of regions and the images they are of, in one Parquet file, no labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import atomic_path, create
from ovseg_batch.io.manifest import key_hash

Array = np.ndarray[Any, Any]

FORMAT = b"ovseg_batch.bank"


@dataclass(frozen=True, slots=True)
class Bank:
    """`features` (B, D) float32, L2-normalised; `images` (B,) uint64 hashes of the images' keys; `made_of` says which
    features they are: those of other models or settings cannot be compared.
    """

    features: Array
    images: Array
    made_of: dict[str, Any]


def write_bank(path: Path, width: int, parts: Iterable[tuple[list[str], Array]], made_of: dict[str, Any]) -> int:
    """Write regions as they come: (keys, features (R, D)) at a time; how many there are.

    The file is replaced when it is whole.
    """
    schema = pa.schema([pa.field("key", pa.string()), pa.field("feature", pa.list_(pa.float16(), width))])
    count = 0
    with atomic_path(path) as temporary, create(temporary) as file, pq.ParquetWriter(file, schema) as writer:
        for keys, features in parts:
            flat = pa.array(features.astype(np.float16).ravel(), pa.float16())
            columns = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(keys)
        writer.add_key_value_metadata({FORMAT.decode(): json.dumps(made_of)})
    return count


def read_bank(path: Path) -> Bank:
    """Raises UsageError where there is no bank."""
    try:
        table = pq.read_table(path)
        made_of = json.loads((pq.read_metadata(path).metadata or {})[FORMAT])
    except FileNotFoundError:
        raise UsageError(
            f"There is no memory bank {path}. `ovseg-batch bank build WORKDIR -o {path}` makes one."
        ) from None
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no memory bank that `ovseg-batch bank build` wrote: {error}") from None
    column = table.column("feature").combine_chunks()
    width = column.type.list_size
    features = column.flatten().to_numpy().reshape(-1, width).astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    images = np.fromiter((key_hash(key) for key in table.column("key").to_pylist()), np.uint64, len(features))
    return Bank(features, images, made_of)
