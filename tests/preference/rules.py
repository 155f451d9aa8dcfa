"""Rules for tests, as a recipe names them."""

import time
from collections.abc import Sequence

from moaa_ray.types import Message


def slow_length(prompt: Sequence[Message], completion: str) -> float:
    """The length of the completion, after a while."""
    time.sleep(0.05)
    return float(len(completion))
