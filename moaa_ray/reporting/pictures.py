"""Small pictures as inline SVG, of numbers and their names: nothing that a model wrote gets in here.

Colours and strokes come from the page's style sheet; each picture says in words what it shows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

from markupsafe import Markup, escape

from moaa_ray.reporting.visible import visible

T = TypeVar("T")
_WIDTH, _HEIGHT = 320, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 12, 38
_MOST_BARS = 20
_BAR_HEIGHT = 22
_LANE, _LOW = 24, 7
_ROW = 30
_CURVE_LEFT = 58
_MOST_POINTS = 200


def margin_histogram(margins: Sequence[float]) -> Markup:
    """How many pairs have which margin. Few distinct margins get a bar each, many are put into equal bins."""
    bars, width = _bars(margins)
    if not bars:
        return Markup("")
    low, high = bars[0][0] - width / 2, bars[-1][0] + width / 2
    most = max(count for _, count in bars)
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = [_line(_LEFT, _TOP + tall, _WIDTH - _RIGHT, _TOP + tall, "axis")]
    for centre, count in bars:
        size = max(2.0, inner * width / (high - low) - 2)
        x = _LEFT + inner * (centre - low) / (high - low) - size / 2
        h = tall * count / most
        bar = f'<rect class="bar" x="{x:.1f}" y="{_TOP + tall - h:.1f}" width="{size:.1f}" height="{h:.1f}">'
        parts.append(f"{bar}<title>{_short(centre)}: {count:,} pairs</title></rect>")
    for i in sorted({round(k * (len(bars) - 1) / 4) for k in range(5)}):
        x = _LEFT + inner * (bars[i][0] - low) / (high - low)
        parts.append(_label(x, _HEIGHT - 22, _short(bars[i][0]), "middle"))
    parts += [_label(_LEFT - 4, _TOP + 8, f"{most:,}", "end"), _label(_LEFT - 4, _TOP + tall, "0", "end")]
    parts.append(_label(_WIDTH / 2, _HEIGHT - 4, "margin: chosen score less rejected score", "middle"))
    middle = sorted(margins)[len(margins) // 2]
    told = f"Histogram of {len(margins):,} margins from {_short(min(margins))} to {_short(max(margins))}, median "
    return _svg(_HEIGHT, told + _short(middle), parts)


def length_scatter(lengths: Sequence[tuple[int, int]]) -> Markup:
    """Characters of chosen against rejected, both on a logarithmic scale; above the diagonal the chosen is longer."""
    if not lengths:
        return Markup("")
    powers = [math.log10(max(1, n)) for pair in lengths for n in pair]
    low, high = math.floor(min(powers)), max(math.floor(min(powers)) + 1, math.ceil(max(powers)))
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(rejected: float, chosen: float) -> tuple[float, float]:
        x, y = ((math.log10(max(1.0, n)) - low) / (high - low) for n in (rejected, chosen))
        return _LEFT + inner * x, _TOP + tall * (1 - y)

    parts = [_line(_LEFT, _TOP + tall, _WIDTH - _RIGHT, _TOP + tall, "axis")]
    parts.append(_line(_LEFT, _TOP, _LEFT, _TOP + tall, "axis"))
    parts.append(_line(*at(10**low, 10**low), *at(10**high, 10**high), "half"))
    for power in range(low, high + 1):
        x, y = at(10**power, 10**power)
        parts += [_label(x, _HEIGHT - 22, _power(power), "end" if power == high else "middle")]
        parts.append(_label(_LEFT - 4, y + 4, _power(power), "end"))
    for chosen, rejected in lengths:
        x, y = at(rejected, chosen)
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
    parts.append(_label(_WIDTH / 2, _HEIGHT - 4, "characters of the rejected; upwards those of the chosen", "middle"))
    longer = sum(chosen > rejected for chosen, rejected in lengths) / len(lengths)
    return _svg(_HEIGHT, f"Lengths of {len(lengths):,} pairs; the chosen completion is longer in {longer:.0%}", parts)


def share_bar(parts: Sequence[tuple[str, float]], *, half: bool = False) -> Markup:
    """A bar in parts that add up to 1, each with its name; half marks the middle."""
    inner = _WIDTH - 2
    drawn, at = [], 1.0
    for i, (name, share) in enumerate(parts):
        size = max(0.0, inner * share)
        drawn.append(f'<rect class="part{i}" x="{at:.1f}" y="4" width="{size:.1f}" height="{_BAR_HEIGHT}"/>')
        if share > 0.22:
            drawn.append(_label(at + size / 2, 19, f"{name} {share:.0%}", "middle", f"on{i}"))
        at += size
    if half:
        drawn.append(_line(_WIDTH / 2, 0, _WIDTH / 2, _BAR_HEIGHT + 8, "half"))
    return _svg(_BAR_HEIGHT + 8, ", ".join(f"{name} {share:.1%}" for name, share in parts), drawn)


def lane(columns: Sequence[Sequence[float]], cuts: Sequence[float], told: str) -> Markup:
    """One lane of the timeline: of every column the parts that were starting, up and busy; cuts are places from 0 to 1.

    The height of what is filled says how busy; it is as wide as the page lets it be, so nothing is written in it.
    """
    states = list(_runs([_state(column) for column in columns]))
    parts = [_rect("idle", begin, 0, end - begin, _LANE) for begin, end, state in states if state == "up"]
    parts += [_rect("starting", i, _LANE - _LOW, j - i, _LOW) for i, j, state in states if state == "starting"]
    levels = [round(10 * column[2] / column[1]) / 10 if _state(column) == "up" else 0.0 for column in columns]
    for begin, end, level in _runs(levels):
        if level:
            parts.append(_rect("bar", begin, _LANE * (1 - level), end - begin, _LANE * level))
    parts += [_line(len(columns) * at, 0, len(columns) * at, _LANE, "cut") for at in cuts]
    return _svg(_LANE, told, parts, width=len(columns), is_stretched=True)


def _state(column: Sequence[float]) -> str:
    starting, up, _ = column
    return "" if not starting + up else "up" if up >= starting else "starting"


def _runs(values: Sequence[T]) -> list[tuple[int, int, T]]:
    """(from, to, value) of every stretch of equal values."""
    found: list[tuple[int, int, T]] = []
    for i, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], i + 1, value)
        else:
            found.append((i, i + 1, value))
    return found


def small_histogram(counts: Sequence[int], told: str) -> Markup:
    """Bars side by side without an axis, for a cell of a table."""
    most = max(counts, default=0) or 1
    bars = [_rect("bar", i, _LANE * (1 - count / most), 1, _LANE * count / most) for i, count in enumerate(counts)]
    return _svg(_LANE, told, [bar for bar, count in zip(bars, counts, strict=True) if count], width=len(counts),
                is_stretched=True)  # fmt: skip


def intervals(rows: Sequence[tuple[str, float, float, float]], *, mark: float) -> Markup:
    """(name, value, low, high) as a dot and a line each, from 0 to 1; mark is where nothing would be the matter."""
    if not rows:
        return Markup("")
    height = _ROW * len(rows) + 26
    inner = _WIDTH - 2 * _RIGHT
    parts: list[str] = []
    for i, (name, value, low, high) in enumerate(rows):
        y = _ROW * i + 26
        parts.append(_label(_RIGHT, y - 9, f"{name}: {value:.1%} [{low:.1%}, {high:.1%}]", "start"))
        parts.append(_line(_RIGHT + inner * mark, y - 6, _RIGHT + inner * mark, y + 6, "half"))
        parts.append(_line(_RIGHT + inner * low, y, _RIGHT + inner * high, y, "whisker"))
        parts.append(f'<circle class="value" cx="{_RIGHT + inner * value:.1f}" cy="{y:.1f}" r="4"/>')
    for at, anchor in ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end")):
        parts.append(_label(_RIGHT + inner * at, height - 4, f"{at:.0%}", anchor))
    told = "; ".join(f"{name} {value:.1%} between {low:.1%} and {high:.1%}" for name, value, low, high in rows)
    return _svg(height, told, parts)


def curves(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup:
    """Named lines over the same steps, the second one dashed; one of few points is drawn with its points."""
    points = [point for _, line in lines for point in line if math.isfinite(point[1])]
    if not points:
        return Markup("")
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    inner, tall = _WIDTH - _CURVE_LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1.0)
        up = (y - low) / ((high - low) or 1.0)
        return _CURVE_LEFT + inner * across, _TOP + tall * (1 - up)

    bottom = _TOP + tall
    parts = [_line(_CURVE_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis")]
    for i, (_, line) in enumerate(lines):
        drawn = [at(x, y) for x, y in _thinned(line) if math.isfinite(y)]
        parts.append(f'<polyline class="line{i}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)}"/>')
        if len(drawn) <= _MOST_BARS:
            parts += [f'<circle class="point{i}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in drawn]
    parts += [
        _label(_CURVE_LEFT - 4, _TOP + 4, _short(high), "end"),
        _label(_CURVE_LEFT - 4, bottom, _short(low), "end"),
    ]
    parts += [_label(_CURVE_LEFT, _HEIGHT - 22, f"{left:,.0f}", "start"),
              _label(_WIDTH - _RIGHT, _HEIGHT - 22, f"{right:,.0f}", "end"),
              _label(_WIDTH / 2, _HEIGHT - 4, "step", "middle")]  # fmt: skip
    told = "; ".join(f"{name} from {_short(line[0][1])} to {_short(line[-1][1])}" for name, line in lines if line)
    return _svg(_HEIGHT, f"{told}, over steps {left:,.0f} to {right:,.0f}", parts)


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as the picture can show: means of as many neighbours each."""
    size = math.ceil(len(line) / _MOST_POINTS)
    groups = [line[i : i + size] for i in range(0, len(line), size or 1)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _bars(values: Sequence[float]) -> tuple[list[tuple[float, int]], float]:
    """(centre, count) from left to right, and the width that all bars have."""
    if not values:
        return [], 1.0
    counts = Counter(round(value, 6) for value in values)
    known = sorted(counts)
    if len(known) <= _MOST_BARS:
        gaps = [b - a for a, b in pairwise(known)]
        return [(value, counts[value]) for value in known], min(gaps, default=1.0)
    low, width = known[0], (known[-1] - known[0]) / _MOST_BARS
    bins = Counter(min(_MOST_BARS - 1, int((value - low) / width)) for value in values)
    return [(low + (i + 0.5) * width, bins[i]) for i in range(_MOST_BARS)], width


def _svg(height: float, told: str, parts: Sequence[str], *, width: int = _WIDTH, is_stretched: bool = False) -> Markup:
    stretched = ' class="stretched" preserveAspectRatio="none"' if is_stretched else ""
    head = f'<svg viewBox="0 0 {width} {height}"{stretched} role="img" aria-label="{escape(visible(told))}">'
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 - numbers and our own words only


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:.1f}" width="{width:g}" height="{height:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(visible(text))}</text>'


def _short(value: float) -> str:
    return f"{value:.3g}"


def _power(power: int) -> str:
    return f"{10**power:,}" if power < 4 else f"1e{power}"
