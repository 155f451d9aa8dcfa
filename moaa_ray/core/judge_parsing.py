"""What judges have said, read strictly: what is not in form counts as not said."""

import re
from math import isfinite

from moaa_ray.core.judge_prompts import CRITERIA, NUM_CRITERIA
from moaa_ray.core.ranking import Winner
from moaa_ray.types import Answer, Completion

_HEADING = "selected criteria"
_ITEM = re.compile(r"(\d+)[.)](.*)")
_VERDICT = re.compile(r"\[\[\s*([AB])\s*\]\]")
_RATING = re.compile(r"\[\[\s*([1-5])\s*\]\]")
_NAMES = {name.casefold(): name for name in CRITERIA}
_DECORATION, _END = " \t*#_", " \t*_:."
"""Markdown that may stand around a line, and what may end it."""
_MAX_TAIL = 20
"""Characters that may follow the verdict of a completion that was cut off."""


def parse_criteria(answer: Answer | None) -> tuple[str, ...] | None:
    """Exactly three different criteria of the eight, numbered 1 to 3 under the heading; None for anything else."""
    if not isinstance(answer, Completion):
        return None
    lines = [line.strip(_DECORATION) for line in answer.text.splitlines()]
    headings = [n for n, line in enumerate(lines) if line.rstrip(_END).casefold() == _HEADING]
    if not headings:
        return None
    found: list[str] = []
    for line in lines[headings[-1] + 1 :]:
        item = _ITEM.match(line)
        if item is None and line:
            break
        if item is not None:
            name = _NAMES.get(item.group(2).strip(_DECORATION + _END).casefold())
            if name is None or item.group(1) != str(len(found) + 1):
                return None
            found.append(name)
    return tuple(found) if len(found) == len(set(found)) == NUM_CRITERIA else None


def parse_verdict(answer: Answer | None) -> Winner | None:
    """The last [[A]] or [[B]] of a completion; None without one.

    A completion that ended at max_tokens counts only where the verdict is its end: otherwise the last one there may be
    one that it was still weighing.
    """
    match = last_match(_VERDICT, answer)
    return None if match is None else ("first" if match == "A" else "second")


def parse_rating(answer: Answer | None) -> int | None:
    """The last rating from [[1]] to [[5]]; None without one."""
    match = last_match(_RATING, answer)
    return None if match is None else int(match)


def parse_score(answer: Answer | None) -> float | None:
    """The finite number that a reward model or a rule has given; None where it gave none."""
    if not isinstance(answer, Completion):
        return None
    try:
        score = float(answer.text)
    except ValueError:
        return None
    return score if isfinite(score) else None


def last_match(pattern: re.Pattern[str], answer: Answer | None) -> str | None:
    """The first group of a pattern's last match in a completion; None without one, also where it was cut off since."""
    if not isinstance(answer, Completion):
        return None
    matches = list(pattern.finditer(answer.text))
    if not matches:
        return None
    if answer.finish_reason == "length" and len(answer.text) - matches[-1].end() > _MAX_TAIL:
        return None
    return matches[-1].group(1)
