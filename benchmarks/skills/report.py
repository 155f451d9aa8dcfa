"""What the seeds say together: the table, the differences that the benchmark is about, and which of them hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.skills import statistics
from benchmarks.skills.arms import TEACHERS
from benchmarks.skills.one_seed import LONGER, MIXTURE, MORE, SELF_IMPROVED
from benchmarks.skills.specialists import SPECIALISTS
from moaa_ray.demo.tasks import Question

_K = len(TEACHERS)
_BY_MOA = "DPO by MoA"
CLAIMS: tuple[tuple[str, str], ...] = (
    (MIXTURE, "base"),
    (_BY_MOA, MIXTURE),
    *((MIXTURE, f"SFT on {teacher}") for teacher in TEACHERS),
    *((MIXTURE, f"SFT on {kind}-{_K}") for kind in ("Random", "Combined", "Best-of")),
    (MIXTURE, "SFT on Self-MoA"),
    *((_BY_MOA, f"DPO by {name}") for name in (*SPECIALISTS, "a coin")),
    (_BY_MOA, LONGER),
    (_BY_MOA, MORE),
    ("DPO by a vote of 3 erring judges", "DPO by an erring judge"),
    (SELF_IMPROVED, "aggregator"),
)
"""(arm, the arm that it should be better than): one family of tests."""


def report(asked: Sequence[Question], outcomes: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies by arm and skill, and every claim's difference; outcomes are Outcome's fields by seed."""
    arms = list(next(iter(outcomes.values()))["correct"])
    correct = {arm: np.array([outcome["correct"][arm] for outcome in outcomes.values()]) for arm in arms}
    found = {f"{one} > {other}": statistics.difference(correct[one], correct[other]) for one, other in CLAIMS}
    adjusted = statistics.holm({name: difference.p for name, difference in found.items()})
    return {
        "num_prompts": len(asked),
        "seeds": list(outcomes),
        "accuracy": {arm: _accuracy(asked, correct[arm]) for arm in arms},
        "claims": {
            name: {**vars(difference), "p_holm": adjusted[name], "holds": _holds(difference, adjusted[name])}
            for name, difference in found.items()
        },
    }


def _holds(difference: statistics.Difference, adjusted: float) -> bool:
    return difference.mean > 0 and adjusted < 0.05


def _accuracy(asked: Sequence[Question], correct_SP: np.ndarray) -> dict[str, Any]:
    """Of one arm: over seeds, and the mean by skill."""
    skills = dict.fromkeys(question.skill for question in asked)
    by_skill = {
        skill: float(correct_SP[:, [i for i, q in enumerate(asked) if q.skill == skill]].mean()) for skill in skills
    }
    return {**statistics.over_seeds(correct_SP.mean(axis=1)), "by_skill": by_skill}


def table(found: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The report for people; facts are one seed's, by arm."""
    skills = list(next(iter(found["accuracy"].values()))["by_skill"])
    lines = [
        f"{found['num_prompts']} held-out prompts, seeds {', '.join(map(str, found['seeds']))}; % right",
        f"{'':34}{'mean':>6}{'min':>6}{'max':>6}  "
        + "".join(f"{skill:>9}" for skill in skills)
        + f"{'data':>7}{'rate':>10}",
    ]
    for arm, row in found["accuracy"].items():
        numbers = "".join(f"{100 * row[key]:6.1f}" for key in ("mean", "min", "max"))
        by_skill = "".join(f"{100 * row['by_skill'][skill]:9.1f}" for skill in skills)
        about = facts.get(arm, {})
        data = f"{100 * about['right']:7.1f}" if "right" in about else f"{'':7}"
        lines.append(f"{arm:34}{numbers}  {by_skill}{data}{about.get('rate', ''):>10}")
    lines.append(f"\n{'difference in points':70}{'mean':>7}{'95 % interval':>17}{'Holm p':>9}")
    for name, claim in found["claims"].items():
        interval = f"[{100 * claim['low']:.1f}, {100 * claim['high']:.1f}]"
        verdict = "" if claim["holds"] else "  does not hold"
        lines.append(f"{name:70}{100 * claim['mean']:7.1f}{interval:>17}{claim['p_holm']:9.4f}{verdict}")
    return "\n".join(lines)
