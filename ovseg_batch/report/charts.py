"""SVG charts with the colours of the page, and titles for screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 232, 44, 46, 22
LETTER, LONGEST = 6.4, 12  # width of a letter in pixels, and longest name below a column in letters
LINE, NAMES = 18, 150  # height of a row, and width of the names, in pixels


def bars(values: Sequence[float], names: Sequence[str], unit: str, across: str) -> str:
    """Return a bar chart with one column per value. Names are shown if there is room.

    Args:
        unit: title of the vertical axis.
        across: title of the horizontal axis.
    """
    most = max(values, default=0) or 1
    step = (WIDTH - LEFT) / max(len(values), 1)
    short = [_cut(name, LONGEST) for name in names]
    every = math.ceil(max((len(name) for name in short), default=1) * LETTER / step)
    parts = [_grid(most, unit), _across(across)]
    for k, (value, name) in enumerate(zip(values, names, strict=True)):
        tall = value / most * (HEIGHT - BOTTOM - TOP)
        x, y = LEFT + k * step + 1, HEIGHT - BOTTOM - tall
        description = escape(f"{name}: {value:,.0f} {unit}")
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(step - 2, 1):.1f}" height="{max(tall, 0.5):.1f}">'
            f"<title>{description}</title></rect>"
        )
        if k % every == 0:
            parts.append(f'<text class="tick" x="{x + step / 2:.1f}" y="{HEIGHT - 30}">{escape(short[k])}</text>')
    description = ", ".join(f"{name} {value:,.0f}" for name, value in zip(names, values, strict=True))
    return _svg(parts, f"{unit} by {across}: {description}")


def rows(values: Sequence[float], names: Sequence[str], unit: str) -> str:
    """Return a bar chart with one row per value, its name and its number, as tall as it needs to be."""
    most, room = max(values, default=0) or 1, WIDTH - NAMES - 60
    parts = [f'<text class="count" x="{NAMES}" y="12">{escape(unit)}</text>']
    for k, (value, name) in enumerate(zip(values, names, strict=True)):
        y, wide = 18 + k * LINE, max(value / most * room, 0.5)
        parts.append(
            f'<text class="name" x="{NAMES - 6}" y="{y + 12}">{escape(_cut(name, 22))}</text>'
            f'<rect class="bar" x="{NAMES}" y="{y + 2}" width="{wide:.1f}" height="{LINE - 4}">'
            f"<title>{escape(f'{name}: {value:,.0f} {unit}')}</title></rect>"
            f'<text class="count" x="{NAMES + wide + 5:.1f}" y="{y + 12}">{value:,.0f}</text>'
        )
    description = ", ".join(f"{name} {value:,.0f}" for name, value in zip(names, values, strict=True))
    return _svg(parts, f"{unit}: {description}", 22 + LINE * len(values))


def line(points: Sequence[tuple[float, float]], across: str, up: str, diagonal: bool = False) -> str:
    """Return a line chart of points with x in [0, 1]. y ranges to the largest value, or to 1 with the `diagonal`."""
    most = 1.0 if diagonal else max((y for _, y in points), default=0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * (WIDTH - LEFT - 8), HEIGHT - BOTTOM - y / most * (HEIGHT - BOTTOM - TOP)

    parts = [_grid(most, up), _across(across)]
    if diagonal:
        (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
        parts.append(f'<line class="ideal" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline class="curve" points="{drawn}"/>')
    if len(points) <= 40:
        for x, y in points:
            description = escape(f"{across} {x:.2f}: {up} {y:.3f}")
            cx, cy = place(x, y)
            parts.append(
                f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="3.5"><title>{description}</title></circle>'
            )
    for x in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<text class="tick" x="{place(x, 0)[0]:.1f}" y="{HEIGHT - 30}">{x:g}</text>')
    return _svg(parts, f"{up} by {across}, from {points[0][1]:.3g} to {points[-1][1]:.3g}" if points else up)


def _cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _across(title: str) -> str:
    """Return the title of the horizontal axis."""
    return f'<text class="axis" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}">{escape(title)}</text>'


def _grid(most: float, unit: str) -> str:
    """Return the lines of the vertical axis with their values, and its title."""
    lines = [f'<text class="count" x="0" y="12">{escape(unit)}</text>']
    for share in (0, 0.5, 1):
        y = HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>')
        lines.append(f'<text class="value" x="{LEFT - 5}" y="{y + 4:.1f}">{_short(share * most)}</text>')
    return "".join(lines)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _svg(parts: Sequence[str], title: str, height: int = HEIGHT) -> str:
    description = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{description}">{"".join(parts)}</svg>'
