"""JSON records with a checksum that detects every changed byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ovseg_batch.io.records import parse_json

SEAL = "seal"


def seal(record: Mapping[str, Any]) -> bytes:
    """Return one line of JSON that ends with a BLAKE2b hash (16 bytes) of the rest."""
    digest = hashlib.blake2b(_text(record).encode(), digest_size=16).hexdigest()
    return (_text({**record, SEAL: digest}) + "\n").encode()


def unseal(content: bytes) -> dict[str, Any]:
    """Return the record of a line that `seal` wrote.

    Raises:
        ValueError: a byte of the line has changed.
    """
    record = parse_json(content)
    if not isinstance(record, dict) or SEAL not in record:
        raise ValueError("not a sealed record")
    del record[SEAL]
    if seal(record) != content:
        raise ValueError("the checksum of the record is wrong")
    return record


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))
