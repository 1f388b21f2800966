"""Cache of text embeddings on disk. They are computed once per model, label and templates, for all runs of a user.

One Parquet file per (model, weights, tokenizer, templates): label, prompt, template, embedding. The prompts of a label
are always encoded together, so cached and new embeddings are bitwise equal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.io.atomic import atomic_path, create
from ovseg_batch.io.hashing import ContentDigest
from ovseg_batch.types.arrays import Floats

Encode = Callable[[list[str]], Floats]

log = logging.getLogger(__name__)

DIGEST = b"ovseg_batch.digest"  # of labels and embeddings, in the file's metadata
PROGRESS_SECONDS = 15.0  # interval of progress messages


def text_embeddings(
    queries: Sequence[str], templates: Sequence[str], encode: Encode, fingerprint: str, folder: Path
) -> dict[str, Floats]:
    """Return the embeddings of every query in every template. Missing ones are computed and cached.

    Args:
        queries: words or phrases.
        templates: format strings with one `{}`.
        encode: prompts → (P, D) float32.
        fingerprint: hash of model, weights, tokenizer and templates. It names the cache file.
        folder: the folder of the cache file.

    Returns:
        query → (T, D) float32, in the templates' order.
    """
    path = folder / "text" / f"{fingerprint}.parquet"
    known = _read(path, len(templates))
    wanted = list(dict.fromkeys(queries))
    missing = [query for query in wanted if query not in known]
    log.info("text embeddings: %d of %d labels from the cache %s", len(wanted) - len(missing), len(wanted), path)
    fresh = {}
    reported = time.monotonic()
    for done, query in enumerate(missing):
        if time.monotonic() > reported + PROGRESS_SECONDS:
            reported = time.monotonic()
            log.info("text embeddings: computed %d of %d labels", done, len(missing))
        fresh[query] = encode([template.format(query) for template in templates])
    if fresh:
        try:
            _write(path, {**known, **fresh}, templates)
        except OSError as error:
            log.warning("cannot write the text cache %s (%s); the run continues without it", path, error)
    return {query: fresh[query] if query in fresh else known[query] for query in wanted}


def _read(path: Path, templates: int) -> dict[str, Floats]:
    """Read the cache. If it is damaged, log a warning and return nothing."""
    try:
        with pq.ParquetFile(path) as file:
            table, stored = file.read(["label", "embedding"]), (file.schema_arrow.metadata or {}).get(DIGEST, b"")
        labels = table["label"].to_pylist()
        matrix = np.stack(table["embedding"].to_pylist()).astype(np.float32)
        if str(_digest(labels, matrix)).encode() != stored:
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return {}
    except Exception as error:  # Parquet's readers raise many classes
        log.warning("The text cache %s is damaged and is computed again (%s).", path, error)
        return {}
    return {labels[i]: matrix[i : i + templates] for i in range(0, len(labels), templates)}


def _digest(labels: Sequence[str], matrix: Floats) -> ContentDigest:
    digest = ContentDigest()
    digest.add(labels, matrix)
    return digest


def _write(path: Path, embeddings: dict[str, Floats], templates: Sequence[str]) -> None:
    lines = [
        {"label": label, "prompt": template.format(label), "template": template, "embedding": vector.tolist()}
        for label, vectors in embeddings.items()
        for template, vector in zip(templates, vectors, strict=True)
    ]
    schema = pa.schema(
        [
            ("label", pa.string()),
            ("prompt", pa.string()),
            ("template", pa.string()),
            ("embedding", pa.list_(pa.float32())),
        ],
        {DIGEST: str(_digest([line["label"] for line in lines], np.concatenate(list(embeddings.values()))))},
    )
    with atomic_path(path) as temporary, create(temporary) as file:
        pq.write_table(pa.Table.from_pylist(lines, schema), file, compression="zstd")
