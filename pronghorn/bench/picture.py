"""The roofline (Williams, Waterman and Patterson, 2009) of a run, as SVG.

Across: operations for each byte that has to be read. Up: operations a second. The slope is what memory
allows, the flat lines what arithmetic does; each point is a cell, and its distance from the line above it
is what was lost. Both axes are logarithmic. A peer's points stand at our operations and bytes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

from pronghorn.bench.record import OURS, Record, Result

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 78, 190, 44, 56
COLOURS = ("#0b6e4f", "#c44900", "#3d5a98", "#8e4585", "#a67c00", "#5c5c5c")
SHAPES = {"decode": "circle", "prefill": "square", "rows": "diamond"}


def roofline(record: Record) -> str:
    """An SVG document. Of a record without cells it has only a title."""
    results = [r for r in record.results if r.samples]
    said = f"{record.model}{' with ' + ', '.join(record.use) if record.use else ''}, {record.threads} threads"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, said, size=15),
    ]
    if results:
        out += _Plot(results).draw()
    return "\n".join([*out, "</svg>", ""])


class _Plot:
    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        limits = [s.limits for r in results for x in r.samples.values() for s in x]
        self.read = statistics.median(x.memory for x in limits)
        self.peaks = {k: statistics.median(x.peaks[k] for x in limits) for k in limits[0].peaks}
        self.points = [
            (name, r.cell.kind, r.cell.name, *_place(r, name)) for r in results for name in r.samples
        ]
        xs = [p[3] for p in self.points]
        ys = [p[4] for p in self.points]
        top = max([*self.peaks.values(), *ys])
        self.x0, self.x1 = _decades(min(xs), max([*xs, 2 * top / self.read]))
        self.y0, self.y1 = _decades(min([*ys, self.read * 10**self.x0 * 2]), top)

    def x(self, value: float) -> float:
        span = self.x1 - self.x0
        return LEFT + (math.log10(value) - self.x0) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        span = self.y1 - self.y0
        return HEIGHT - BOTTOM - (math.log10(value) - self.y0) / span * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> list[str]:
        out = self._axes()
        low = max(10**self.x0, 10**self.y0 / self.read)
        top = max(self.peaks.values())
        knee = top / self.read
        out.append(_line(self.x(low), self.y(low * self.read), self.x(knee), self.y(top), "#222", 1.6))
        at = math.sqrt(low * knee)
        out.append(
            _text(self.x(at) - 6, self.y(at * self.read) - 8, f"{self.read / 1e9:.0f} GB/s", anchor="end")
        )
        for kind, peak in self.peaks.items():
            start, end, y = self.x(peak / self.read), WIDTH - RIGHT, self.y(peak)
            out.append(_line(start, y, end, y, "#222", 1.6))
            out.append(_text(end + 6, y + 4, f"{kind} {peak / 1e9:.0f} GOP/s"))
        engines = list(dict.fromkeys(p[0] for p in self.points))
        engines.sort(key=lambda name: name != OURS)
        for name, kind, cell, x, y in sorted(self.points, key=lambda p: p[0] == OURS):
            colour = COLOURS[engines.index(name) % len(COLOURS)]
            out.append(_mark(kind, self.x(x), self.y(y), colour, name == OURS, f"{name}: {cell}"))
        return out + self._legend(engines)

    def _axes(self) -> list[str]:
        out = []
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for k in range(self.x0, self.x1 + 1):
            x = self.x(10.0**k)
            out += [_line(x, TOP, x, bottom, "#e4e4e4", 1), _text(x, bottom + 18, f"{10.0**k:g}", "middle")]
        for k in range(self.y0, self.y1 + 1):
            y = self.y(10.0**k)
            out += [_line(LEFT, y, right, y, "#e4e4e4", 1)]
            out += [_text(LEFT - 8, y + 4, f"{10.0**k / 1e9:g}", "end")]
        middle = (TOP + bottom) / 2
        out.append(_text((LEFT + right) / 2, HEIGHT - 14, "operations for each byte read", "middle"))
        turn = f'transform="rotate(-90 20 {middle:.0f})"'
        out.append(f'<text x="20" y="{middle:.0f}" text-anchor="middle" {turn}>GOP/s</text>')
        return out

    def _legend(self, engines: Sequence[str]) -> list[str]:
        out, x, y = [], WIDTH - RIGHT + 12, HEIGHT - BOTTOM - 20 * (len(engines) + len(SHAPES))
        for i, name in enumerate(engines):
            out.append(_mark("decode", x, y + 20 * i, COLOURS[i % len(COLOURS)], name == OURS, name))
            out.append(_text(x + 12, y + 20 * i + 4, name))
        for i, kind in enumerate(SHAPES, len(engines)):
            out.append(_mark(kind, x, y + 20 * i, "#777", False, kind))
            out.append(_text(x + 12, y + 20 * i + 4, "a step of n rows" if kind == "rows" else kind))
        return out


def _place(r: Result, name: str) -> tuple[float, float]:
    """Operations a byte, and operations a second."""
    work = sum(r.cost.operations.values())
    return work / r.cost.n_bytes, work / r.seconds(name).median


def _decades(low: float, high: float) -> tuple[int, int]:
    return math.floor(math.log10(low)), math.ceil(math.log10(high * 1.05))


def _text(x: float, y: float, said: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(said)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _mark(kind: str, x: float, y: float, colour: str, is_full: bool, said: str) -> str:
    """A point with its name for whoever points at it."""
    style = f'fill="{colour if is_full else "#fff"}" stroke="{colour}" stroke-width="1.5"'
    title = f"<title>{escape(said)}</title>"
    if SHAPES[kind] == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}>{title}</circle>'
    if SHAPES[kind] == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {style}>{title}</rect>'
    points = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
    return f'<polygon points="{points}" {style}>{title}</polygon>'
