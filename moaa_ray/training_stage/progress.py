"""What training looks like while it runs: one line that refreshes on a terminal, a few plain lines in a log file."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from moaa_ray import telemetry
from moaa_ray.core.batches import BatchPlan
from moaa_ray.data.store import Store
from moaa_ray.generation.progress import duration
from moaa_ray.telemetry import Telemetry
from moaa_ray.training_stage.falling import falling_note
from moaa_ray.training_stage.trackers import Trackers

_LOG_EVERY_S = 15.0
_RATE_STEPS = 20


class TrainingProgress:
    """Follows a stage's metrics file."""

    def __init__(self, store: Store, stage: str, *, console: Console | None = None):
        self._store = store
        self._stage = stage
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last_log = 0.0
        self._lines: list[dict] = []
        self._has_warned = False

    def __enter__(self) -> "TrainingProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True)

    def begin(self, plan: BatchPlan, num_workers: int) -> None:
        """Say what will be trained."""
        units = sum(source.num_units for source in plan.sources)
        kind = "packs" if self._stage == "sft" else "pairs"
        rest = f"; the last {plan.num_unused:,} {kind} of the last epoch fill no step" if plan.num_unused else ""
        self.note(
            f"{self._stage}: {units:,} {kind}, {plan.epochs} epochs in {plan.num_steps:,} steps of {plan.batch}, "
            f"{num_workers} worker{'s' if num_workers > 1 else ''}{rest}"
        )

    def show(self, told: Telemetry, trackers: Trackers, *, is_last: bool = False) -> None:
        """Draw the newest step; a log gets a line every quarter of a minute, and the last one always.

        told hears of the newest step each time, also where nothing is drawn; trackers hear of all that have been read.
        """
        from moaa_ray.training.metrics import read_metrics

        now = time.monotonic()
        if self._console.is_terminal or is_last or now - self._last_log >= _LOG_EVERY_S:
            self._last_log = now
            lines = read_metrics(self._store, f"metrics/{self._stage}.jsonl")
            if lines and (not self._lines or lines[-1]["step"] != self._lines[-1]["step"]):
                self._draw(lines)
            self._lines = lines
            if not self._has_warned and (said := falling_note(self._stage, lines)):
                self._has_warned = True
                self.note(said)
            trackers.tell(lines)
        tell(told, self._lines)

    def _draw(self, lines: list[dict]) -> None:
        text = progress_line(self._stage, lines)
        if self._console.is_terminal:
            self._live.update(Text(text), refresh=True)
        else:
            self._console.print(text, soft_wrap=True)


_TOLD = {
    "num_steps": telemetry.STEPS,
    "seconds": telemetry.STEP_SECONDS,
    "loss": telemetry.LOSS,
    "learning_rate": telemetry.LEARNING_RATE,
    "grad_norm": telemetry.GRADIENT_NORM,
    "tokens_per_s": telemetry.TOKENS_PER_SECOND,
    "mfu": telemetry.MFU,
    "memory_bytes": telemetry.MEMORY,
}
"""What a line of metrics holds, and the name that it is told by."""


def tell(told: Telemetry, lines: list[dict]) -> None:
    """Tell Prometheus that training goes on, and what the newest of its lines holds."""
    told.show(telemetry.STAGE_ACTIVE, 1)
    if not lines:
        return
    told.show(telemetry.STEP, lines[-1]["step"] + 1)
    for name, metric in _TOLD.items():
        if name in lines[-1]:
            told.show(metric, lines[-1][name])
    validated = _validated(lines)
    if validated is not None:
        told.show(telemetry.VALIDATION_LOSS, validated["validation_loss"])


def progress_line(stage: str, lines: list[dict]) -> str:
    """The newest step in one line: loss, rate, norm, speed, memory, time left."""
    last = lines[-1]
    recent = lines[-_RATE_STEPS:]
    seconds = sum(line["seconds"] + line["save_s"] for line in recent) / len(recent)
    left = (last["num_steps"] - last["step"] - 1) * seconds
    speed = sum(line["tokens"] for line in recent) / sum(line["seconds"] for line in recent)
    parts = [
        f"{stage} step {last['step'] + 1:,}/{last['num_steps']:,}",
        f"epoch {last['epoch']:.2f}",
        f"loss {last['loss']:.4f}",
        *([f"accuracy {last['accuracy']:.2f}", f"margin {last['margin']:.3f}"] if "accuracy" in last else []),
        f"lr {last['learning_rate']:.2e}",
        f"grad norm {last['grad_norm']:.2f}",
        f"{speed:,.0f} tokens/s",
        *([f"MFU {last['mfu']:.0%}"] if "mfu" in last else []),
        f"{last['memory_bytes'] / 2**30:.1f} GiB",
        f"{duration(left)} left",
    ]
    validated = _validated(lines)
    if validated is not None:
        parts.append(f"validation loss {validated['validation_loss']:.4f} at step {validated['step'] + 1:,}")
    return ", ".join(parts)


def _validated(lines: list[dict]) -> dict | None:
    """The newest line with a validation."""
    return next((line for line in reversed(lines) if "validation_loss" in line), None)
