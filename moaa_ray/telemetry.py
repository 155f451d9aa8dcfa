"""The numbers of a run for Prometheus: one table of their names, and how they are told to Ray's own metrics.

Ray's agent on every node serves them beside its own, with `ray_` before each name. The driver tells them whenever it
looks at progress, from the very counts that the display and the summary show; no row and no worker tells anything.

A gauge that is not told again is gone from the agent within 20 s, so a run that has ended, or a driver that was killed,
leaves none. Counters stay as long as the Ray cluster, and count this start of the stage: a run that goes on begins at
zero. Labels are names from the recipe and short codes; never ids or texts of rows.
"""

import logging
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)
_MOST_CODES = 24
"""Different reasons of one metric; what comes after them is counted as `other`."""
_CODE_CHARS = 80
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One name. It is a counter where it ends in _total, else a gauge; units are base units, and stand in the name."""

    name: str
    labels: tuple[str, ...] = ()
    """Beside `run` (the recipe's name) and `stage`, which all have."""
    text: str

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")

    @property
    def exported(self) -> str:
        """The name that Prometheus sees."""
        return f"ray_{self.name}"


STAGE_ACTIVE = Metric(name="moaa_stage_active", text="1 while the driver works on the stage's rows or steps")
STAGE_ERRORS = Metric(
    name="moaa_stage_errors_total", labels=("error",), text="ends of a stage by an error, by the error's kind"
)
ROWS = Metric(
    name="moaa_rows_total",
    labels=("status",),
    text="committed rows: ok, failed, quarantined, or open (a turn or phase is done, and more is to come)",
)
ROW_FAILURES = Metric(name="moaa_row_failures_total", labels=("reason",), text="failed and quarantined rows by reason")
ROWS_LEFT = Metric(name="moaa_rows_left", text="rows that the present phase has yet to commit, once per user turn")
BLOCKS_IN_LINE = Metric(name="moaa_blocks_in_line", text="blocks between admission and commit")
CALLS = Metric(name="moaa_calls_total", labels=("pool",), text="requests that have a completion or failed")
CALL_FAILURES = Metric(
    name="moaa_call_failures_total", labels=("pool", "reason"), text="requests without a completion, by reason"
)
PROMPT_TOKENS = Metric(name="moaa_prompt_tokens_total", labels=("pool",), text="tokens that the engines have read")
COMPLETION_TOKENS = Metric(
    name="moaa_completion_tokens_total", labels=("pool",), text="tokens that the engines have written"
)
BUSY_SECONDS = Metric(
    name="moaa_engine_busy_seconds_total", labels=("pool",), text="seconds with a request, summed over engines"
)
UP_SECONDS = Metric(name="moaa_engine_up_seconds_total", labels=("pool",), text="seconds up, summed over engines")
ENGINE_DEATHS = Metric(
    name="moaa_engine_deaths_total", labels=("pool",), text="deaths of engines and of their worker processes"
)
OPEN_REQUESTS = Metric(name="moaa_open_requests", labels=("pool",), text="requests that the pool's engines have now")
ENGINES_UP = Metric(name="moaa_engines_up", labels=("pool",), text="engines that can answer now")
STEP = Metric(name="moaa_training_step", text="optimizer steps done")
STEPS = Metric(name="moaa_training_steps", text="optimizer steps of the whole stage")
STEP_SECONDS = Metric(name="moaa_training_step_seconds", text="seconds that the newest step took")
LOSS = Metric(name="moaa_training_loss", text="loss of the newest step")
VALIDATION_LOSS = Metric(name="moaa_training_validation_loss", text="loss on the rows kept for validation, the newest")
LEARNING_RATE = Metric(name="moaa_training_learning_rate", text="learning rate of the newest step")
GRADIENT_NORM = Metric(name="moaa_training_gradient_norm", text="gradient norm of the newest step, before clipping")
TOKENS_PER_SECOND = Metric(
    name="moaa_training_tokens_per_second", text="tokens of the newest step, all workers, by its seconds"
)
MFU = Metric(name="moaa_training_mfu_ratio", text="part of the GPU's peak operations that the newest step used, 0 to 1")
MEMORY = Metric(name="moaa_training_memory_bytes", text="peak memory of the first worker's GPU, or of its process")

METRICS = (
    STAGE_ACTIVE, STAGE_ERRORS, ROWS, ROW_FAILURES, ROWS_LEFT, BLOCKS_IN_LINE, CALLS, CALL_FAILURES,
    PROMPT_TOKENS, COMPLETION_TOKENS, BUSY_SECONDS, UP_SECONDS, ENGINE_DEATHS, OPEN_REQUESTS, ENGINES_UP, STEP, STEPS,
    STEP_SECONDS, LOSS, VALIDATION_LOSS, LEARNING_RATE, GRADIENT_NORM, TOKENS_PER_SECOND, MFU, MEMORY,
)  # fmt: skip


class Telemetry:
    """Tells the numbers of one phase of rows, or of one training, while a session with Ray lasts.

    As a context it counts the error by which its block ends. It raises nothing of its own: the first thing that goes
    wrong with Ray's metrics is logged, and nothing is told from then on.
    """

    def __init__(self, *, run: str, stage: str):
        self._tags = {"run": run, "stage": stage}
        self._told: dict[tuple[str, ...], float] = {}
        self._codes: dict[str, dict[str, None]] = {}
        self._open: dict[str, object] = {}
        self._is_on = True

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.count(STAGE_ERRORS, 1, error=kind.__name__)

    def count(self, metric: Metric, total: float, **labels: str) -> None:
        """A counter stands at `total` now, since this object was made; what is new of it is added."""
        key = (metric.name, *labels.values())
        new = total - self._told.get(key, 0)
        if new > 0:
            self._told[key] = total
            self._tell(metric, new, labels)

    def show(self, metric: Metric, value: float, **labels: str) -> None:
        """A gauge stands at `value`. Told less often than every 10 s it comes and goes."""
        self._tell(metric, value, labels)

    def code(self, metric: Metric, reason: str) -> str:
        """A reason as the value of a label: without its details, and one of at most 24 different ones of a metric."""
        code = reason.split(" (")[0][:_CODE_CHARS]
        codes = self._codes.setdefault(metric.name, {})
        if len(codes) < _MOST_CODES:
            codes[code] = None
        return code if code in codes else OTHER

    def _tell(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        if not self._is_on:
            return
        from ray.util.metrics import Counter, Gauge

        try:
            if metric.name not in self._open:
                kind = Counter if metric.is_counter else Gauge
                self._open[metric.name] = kind(metric.name, metric.text, tuple(self._tags) + metric.labels)
            opened = self._open[metric.name]
            tell = opened.inc if isinstance(opened, Counter) else opened.set  # pyright: ignore[reportAttributeAccessIssue]: the other kind
            tell(value, {**self._tags, **labels})
        except Exception as error:  # whatever it is, it is not worth a run
            self._is_on = False
            _LOG.warning("%s: Ray's metrics do not work here (%s); nothing more is told", metric.name, error)
