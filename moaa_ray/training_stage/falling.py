"""Whether preference training makes the chosen completions themselves less likely, which its loss does not tell."""

from collections.abc import Mapping, Sequence
from typing import Any

_CLEARLY = 0.1
"""Nats per token: a token of a chosen completion is then a tenth less likely than before training."""
_STEPS = 20


def falling_note(stage: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """What people should know where chosen completions are clearly less likely than under the reference; else "".

    By the newest validation, and without any by the mean of the last 20 steps.
    """
    validated = [line for line in lines if "validation_chosen_ratio" in line]
    recent = [line for line in lines[-_STEPS:] if "chosen_ratio" in line]
    if validated:
        ratio, tokens = validated[-1]["validation_chosen_ratio"], validated[-1]["validation_chosen_tokens"]
        where = f"validation at step {validated[-1]['step'] + 1:,}"
    elif recent:
        ratio, tokens = (sum(line[name] for line in recent) / len(recent) for name in ("chosen_ratio", "chosen_tokens"))
        where = f"mean of the steps up to {recent[-1]['step'] + 1:,}"
    else:
        return ""
    if ratio > -_CLEARLY * tokens:
        return ""
    return (
        f"{stage}: the chosen completions have become less likely than they were, by {-ratio:.1f} nats each and "
        f"{-ratio / tokens:.2f} a token ({where}); raise {stage}.sft_weight, or lower {stage}.learning_rate"
    )
