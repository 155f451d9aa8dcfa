"""What an engine's host counts, and signs of its life; the numbers behind the progress display and the summary."""

from collections import Counter
from dataclasses import dataclass, field

from moaa_ray.types import Completion

GONE = "gone"
"""The state of an engine whose worker process is dead: its counts are kept, and it is none of the pool's engines."""


@dataclass
class HostStats:
    """What one worker's engine has done so far; times in seconds."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter = field(default_factory=Counter)
    busy_s: float = 0.0
    up_s: float = 0.0
    start_s: float = 0.0
    deaths: int = 0
    open_requests: int = 0
    state: str = "waiting"

    def add_tokens(self, answer: Completion) -> None:
        """Count what one completion has read and written."""
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A worker process as it was last heard of; num_rows are with its engine."""

    worker: str
    node_id: str
    pid: int
    incarnation: int
    num_reports: int
    state: str
    open_requests: int
    num_rows: int

    @property
    def life(self) -> tuple[str, int]:
        """Which process of which worker."""
        return self.worker, self.incarnation
