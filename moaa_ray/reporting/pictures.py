"""Small pictures as inline SVG, of numbers alone: nothing that a model wrote gets in here.

Colours and strokes come from the page's style sheet; each picture says in words what it shows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 320, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 12, 38
_MOST_BARS = 20
_BAR_HEIGHT = 22


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


def _svg(height: float, told: str, parts: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(told)}">'
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 - numbers and our own words only


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:.3g}"


def _power(power: int) -> str:
    return f"{10**power:,}" if power < 4 else f"1e{power}"
