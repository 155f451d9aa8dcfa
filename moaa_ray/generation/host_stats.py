"""What an engine's host counts, and signs of its life; the numbers behind the progress display and the summary."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from moaa_ray.core.passes import EMPTY, is_empty
from moaa_ray.types import Answer, Completion, Failure

GONE = "gone"
"""The state of an engine whose worker process is dead: its counts are kept, and it is none of the pool's engines."""


@dataclass(frozen=True, kw_only=True)
class PassTokens:
    """What the completions of one pass have read and written; failures are not in it."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "PassTokens") -> "PassTokens":
        return PassTokens(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


def sum_of_passes(tokens: Iterable[dict[str, PassTokens]]) -> dict[str, PassTokens]:
    """The sums of several engines or starts, by pass."""
    total: dict[str, PassTokens] = {}
    for each in tokens:
        for name, counted in each.items():
            total[name] = total.get(name, PassTokens()) + counted
    return total


@dataclass
class HostStats:
    """What one worker's engine has done so far; times in seconds."""

    calls: int = 0
    retries: int = 0
    """Attempts that failed and were made again; they are no calls of their own."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter = field(default_factory=Counter)
    passes: dict[str, PassTokens] = field(default_factory=dict)
    busy_s: float = 0.0
    """With at least one request."""
    slot_s: float = 0.0
    """Summed over the slots that had a request; slot_s / busy_s is how many had one on average while it was busy."""
    up_s: float = 0.0
    start_s: float = 0.0
    num_starts: int = 0
    deaths: int = 0
    open_requests: int = 0
    state: str = "waiting"

    def add(self, answer: Answer) -> None:
        """Count the answer to one request; a completion without text has its tokens, and is a failure too."""
        self.calls += 1
        if isinstance(answer, Failure):
            self.failures[answer.reason] += 1
            return
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens
        if is_empty(answer):
            self.failures[EMPTY] += 1

    def add_pass(self, name: str, answers: Iterable[Answer]) -> None:
        """Count the completions among these as those of the pass."""
        for answer in answers:
            if isinstance(answer, Completion):
                more = PassTokens(
                    calls=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
                )
                self.passes[name] = self.passes.get(name, PassTokens()) + more

    def copy(self) -> "HostStats":
        """The same numbers, which later counting leaves alone."""
        return replace(self, failures=Counter(self.failures), passes=dict(self.passes))


class SlotClock:
    """Adds up how long an engine has requests, and how many of its slots they fill."""

    def __init__(self, num_slots: int):
        self._num_slots = num_slots
        self._num_open = 0
        self._since = 0.0
        self.busy_s = self.slot_s = 0.0

    def set(self, num_open: int, now: float) -> None:
        """From now on so many requests are open; the time until now counts with the number before."""
        if self._num_open:
            self.busy_s += now - self._since
            self.slot_s += min(self._num_open, self._num_slots) * (now - self._since)
        self._num_open, self._since = num_open, now


class Patience:
    """How long an engine with open requests may be silent, by its own latencies; all in seconds."""

    def __init__(self, *, least_s: float, request_timeout_s: float):
        self._least_s = least_s
        self._at_first_s = min(request_timeout_s / 2, 10 * least_s)
        self._latencies_s: deque[float] = deque(maxlen=1000)

    def add(self, latency_s: float) -> None:
        """One more completion took so long."""
        self._latencies_s.append(latency_s)

    @property
    def limit_s(self) -> float:
        """Three times the 99th percentile of the last thousand completions, and at least least_s."""
        if len(self._latencies_s) < 20:
            return max(self._least_s, self._at_first_s)
        return max(self._least_s, 3 * sorted(self._latencies_s)[int(len(self._latencies_s) * 0.99)])


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
