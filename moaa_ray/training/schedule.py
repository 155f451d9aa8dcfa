"""The learning rate of every optimizer step: linear warm-up, then constant, linear or cosine decay."""

from math import cos, pi


def learning_rate(
    step: int, num_steps: int, *, peak: float, kind: str, warmup_ratio: float, floor_ratio: float = 0.0
) -> float:
    """Rate of step `step` (from 0) of `num_steps`.

    Warm-up takes the first warmup_ratio of the steps, rounded up, and reaches `peak` in its last one;
    decay ends at floor_ratio x peak one step after the last, so that no step is wasted on a rate of 0.
    """
    num_warm = -int(-num_steps * warmup_ratio // 1)
    if step < num_warm:
        return peak * (step + 1) / num_warm
    done = (step - num_warm) / max(1, num_steps - num_warm)
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1 + cos(pi * done)) / 2}[kind]
    return peak * (floor_ratio + (1 - floor_ratio) * left)
