"""Seeded mutations of files: of any bytes, of texts, and of the values in JSON and YAML."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, bytes, Random], bytes]

HEADER = 128  # bytes at the start in which formats keep their sizes
LONGEST_RANGE = 64  # bytes
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PIECES = (
    *("\0", "\x1b[31m", "\r", "\n", "\n\n", "\u2028", "\ufeff", "\ufffe", "\U0001f408", "\u202e", "é", "e\u0301"),
    *('"', "'", '"""', ",", ";", "\t", "|", ":", ": ", "- ", "[", "]", "{", "}", "#", "&a ", "*a", "!!x ", "%", "\\"),
    *("\\ud800", "\\u0000", "\\x00", "../", "/", "//", "~", "*", "[!a]", "file://", "http://[::1/a.png", "s3://"),
    *("NaN", "Infinity", "-1", "1e999", "1" * 400, "0x10", "null", "true", "=1+1", "sep=;\n", "@", "dataset:voc21"),
    *("a" * 300, "[" * 3000, "{" * 3000, '{"a":' * 2000, "- " * 500),
)
SURROGATES = ("\ud800", "\udcff", "a\udc80b")
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252")
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 1.5, 2**31, 2**63 - 1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", " ", "."),
    *("..", "/", "a\0b", "a\nb", "\x1b[31m", "é" * 200, "\ud800", "a.png", "../a.png", [], [[]], [None], ["a.png"]),
    *({}, {"a": 1}, {"": ""}, "http://127.0.0.1:9/x.jpg", "gopher://a/b.png", "sky", "sky; nothing", -0.0),
)


def mutate_bytes(content: bytes, other: bytes, random: Random) -> tuple[bytes, str]:
    """Return content with one to three mutations, and their names.

    Args:
        content: of a file.
        other: the content of another file, for splices.
        random: decides everything.
    """
    names = random.choices(list(BYTE_MUTATIONS), k=random.choice((1, 1, 1, 2, 3)))
    for name in names:
        content = BYTE_MUTATIONS[name](content, other, random)
    return content, "+".join(names)


def mutate_text(text: str, random: Random) -> tuple[bytes, str]:
    """Return a text with one to three mutations, encoded, and their names. Few are in another encoding than UTF-8."""
    names = random.choices(list(TEXT_MUTATIONS), k=random.choice((1, 1, 2, 3)))
    for name in names:
        text = TEXT_MUTATIONS[name](text, random)
    if random.random() < 0.1:
        encoding = random.choice(ENCODINGS)
        return text.encode(encoding, "replace"), "+".join([*names, encoding])
    return text.encode("utf-8", "surrogatepass" if random.random() < 0.5 else "replace"), "+".join(names)


def mutate_value(tree: Any, random: Random) -> Any:
    """Return a tree of lists, mappings and plain values in which one node is another value, doubled, or gone."""
    nodes = [*_places(tree)]
    if not nodes:
        return _value(random)
    holder, key = random.choice(nodes)
    kind = random.choice(("replace", "replace", "replace", "drop", "double", "rename", "nest"))
    if kind == "replace":
        holder[key] = _value(random)
    elif kind == "nest":
        holder[key] = random.choice(([holder[key]], {"a": holder[key]}, {"images": [holder[key]]}))
    elif kind == "drop":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "rename":
        holder[str(random.choice(VALUES))] = holder.pop(key)
    else:
        holder[f"{key} "] = copy.deepcopy(holder[key])
    return tree


def _value(random: Random) -> Any:
    """Return a copy of one of `VALUES`, because later mutations change lists and mappings in place."""
    return copy.deepcopy(random.choice(VALUES))


def mutate_json(tree: Any, random: Random) -> Any:
    """Return a copy of a tree of JSON with one to three of its nodes mutated."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.choice((1, 1, 2, 3))):
        tree = mutate_value(tree, random)
    return tree


def to_json(tree: Any) -> str:
    """Return JSON that keeps lone surrogates as escapes."""
    return json.dumps(tree, ensure_ascii=True)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key or index) of every node below the root."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = [*holder] if isinstance(holder, dict) else [*range(len(holder))] if isinstance(holder, list) else []
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


# --- bytes ---


def _flip(content: bytes, other: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _flip_header(content: bytes, other: bytes, random: Random) -> bytes:
    return _flip(content[:HEADER], other, random) + content[HEADER:]


def _random_bytes(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:start] + random.randbytes(end - start) + content[end:]


def _cut(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _cut_out(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:start] + content[end:]


def _insert(content: bytes, other: bytes, random: Random) -> bytes:
    start, _ = _range(content, random)
    return content[:start] + random.randbytes(random.randrange(1, LONGEST_RANGE)) + content[start:]


def _repeat(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:end] + content[start:end] * random.choice((1, 1, 2, 50)) + content[end:]


def _zero(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:start] + bytes(end - start) + content[end:]


def _swap(content: bytes, other: bytes, random: Random) -> bytes:
    (a, b), (c, d) = sorted((_range(content, random), _range(content, random)))
    return content if c < b else content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _extreme(content: bytes, other: bytes, random: Random) -> bytes:
    """Write an extreme number of 16 or 32 bits, mostly into the header."""
    order, kind = random.choice("<>"), random.choice("HI")
    value = random.choice(EXTREMES) & (0xFFFF if kind == "H" else 0xFFFFFFFF)
    packed = struct.pack(order + kind, value)
    room = min(len(content), HEADER if random.random() < 0.7 else len(content)) - len(packed)
    place = random.randrange(room) if room > 0 else 0
    return content[:place] + packed + content[place + len(packed) :]


def _splice(content: bytes, other: bytes, random: Random) -> bytes:
    """Join the start of one file and the end of another."""
    share = random.random()
    return content[: int(share * len(content))] + other[int(share * len(other)) :]


def _range(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.randrange(1, LONGEST_RANGE))


BYTE_MUTATIONS: dict[str, Mutation] = {
    "flip": _flip,
    "flip-header": _flip_header,
    "random-bytes": _random_bytes,
    "cut": _cut,
    "cut-out": _cut_out,
    "insert": _insert,
    "repeat": _repeat,
    "zero": _zero,
    "swap": _swap,
    "extreme": _extreme,
    "splice": _splice,
}

# --- texts ---


def _piece(text: str, random: Random) -> str:
    place = random.randrange(len(text) + 1)
    return text[:place] + random.choice((*PIECES, *SURROGATES)) + text[place:]


def _replace(text: str, random: Random) -> str:
    place = random.randrange(len(text) + 1)
    return text[:place] + random.choice(PIECES) + text[place + random.randrange(1, 6) :]


def _cut_text(text: str, random: Random) -> str:
    return text[: random.randrange(len(text) + 1)]


def _lines(text: str, random: Random) -> str:
    """Drop, double or swap lines."""
    lines = text.splitlines(keepends=True) or [""]
    _rearrange(lines, random, lambda line: line.rstrip("\r\n"))
    return "".join(lines)


def _rearrange(parts: list[str], random: Random, change: Callable[[str], str]) -> None:
    """Drop, double, swap or change one of the parts of a text."""
    place, other = random.randrange(len(parts)), random.randrange(len(parts))
    kind = random.choice(("drop", "double", "swap", "change"))
    if kind == "drop":
        del parts[place]
    elif kind == "double":
        parts.insert(other, parts[place])
    elif kind == "swap":
        parts[place], parts[other] = parts[other], parts[place]
    else:
        parts[place] = change(parts[place])


def _fields(text: str, random: Random) -> str:
    """Drop, double or swap the fields of a line."""
    lines = text.split("\n")
    number = random.randrange(len(lines))
    separator = random.choice(",;\t :")
    fields = lines[number].split(separator)
    _rearrange(fields, random, lambda _: random.choice(PIECES))
    lines[number] = separator.join(fields)
    return "\n".join(lines)


def _separator(text: str, random: Random) -> str:
    return text.replace(random.choice(",;\t"), random.choice(",;\t|: "))


def _line_ends(text: str, random: Random) -> str:
    return text.replace("\n", random.choice(("\r\n", "\r", "\n\n", "\u2028", "")))


def _indent(text: str, random: Random) -> str:
    lines = text.split("\n")
    number = random.randrange(len(lines))
    lines[number] = random.choice(("  ", "\t", " ")) + lines[number]
    return "\n".join(lines)


TEXT_MUTATIONS: dict[str, Callable[[str, Random], str]] = {
    "piece": _piece,
    "replace": _replace,
    "cut": _cut_text,
    "lines": _lines,
    "fields": _fields,
    "separator": _separator,
    "line-ends": _line_ends,
    "indent": _indent,
}
