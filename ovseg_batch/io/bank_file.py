"""Read and write memory banks: one Parquet file with region features and the images that they come from, without
labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import atomic_path, create
from ovseg_batch.io.hashing import ContentDigest, key_hash
from ovseg_batch.types.arrays import Floats

FORMAT, DIGEST = b"ovseg_batch.bank", b"ovseg_batch.digest"  # in the file's metadata


@dataclass(frozen=True, slots=True)
class Bank:
    """A memory bank.

    Attributes:
        features: (B, D) float32, L2-normalised.
        images: (B,) uint64 hashes of the images' keys.
        made_of: models and settings of the features. Only features with equal `made_of` can be compared.
    """

    features: Floats
    images: NDArray[np.uint64]
    made_of: dict[str, Any]


def write_bank(path: Path, width: int, parts: Iterable[tuple[list[str], Floats]], made_of: dict[str, Any]) -> int:
    """Stream regions into a memory bank and return their number. The file appears when it is complete.

    Args:
        path: the file, replaced atomically.
        width: D, the length of a feature.
        parts: batches of regions: R image keys, and features (R, D) float32.
        made_of: models and settings of the features.
    """
    schema = pa.schema([pa.field("key", pa.string()), pa.field("feature", pa.list_(pa.float16(), width))])
    count, digest = 0, ContentDigest()
    with atomic_path(path) as temporary, create(temporary) as file, pq.ParquetWriter(file, schema) as writer:
        for keys, features in parts:
            digest.add(keys, features.astype(np.float16))
            flat = pa.array(features.astype(np.float16).ravel(), pa.float16())
            columns = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(keys)
        digest.add([json.dumps(made_of)], np.empty(0))
        writer.add_key_value_metadata({FORMAT.decode(): json.dumps(made_of), DIGEST.decode(): str(digest)})
    return count


def read_bank(path: Path) -> Bank:
    """Read a memory bank. Raises UsageError where the file is missing or damaged."""
    try:
        with pq.ParquetFile(path) as file:
            table, metadata = file.read(), file.metadata.metadata or {}
        made_of, stored = json.loads(metadata[FORMAT]), metadata[DIGEST]
        column, keys = table.column("feature").combine_chunks(), table.column("key").to_pylist()
        exact = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        digest = ContentDigest()
        digest.add([*keys, metadata[FORMAT].decode()], exact)
    except FileNotFoundError:
        raise UsageError(
            f"There is no memory bank {path}. `ovseg-batch bank build WORKDIR -o {path}` builds one."
        ) from None
    except Exception as error:  # the readers of Parquet raise many classes
        raise UsageError(f"{path} is no memory bank that this version of `bank build` wrote: {error}") from None
    if str(digest).encode() != stored:
        raise UsageError(f"{path} is damaged: its checksum is wrong. Build the bank again.")
    features = exact.astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    return Bank(features, np.fromiter(map(key_hash, keys), np.uint64, len(features)), made_of)
