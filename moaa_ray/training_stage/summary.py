"""What a training stage did, as facts for summary.json and as a few lines for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moaa_ray.data.store import Store
from moaa_ray.generation.progress import duration
from moaa_ray.training_stage.datasets import Prepared, Stage
from moaa_ray.training_stage.falling import falling_note

if TYPE_CHECKING:
    from moaa_ray.planning.training import TrainingPlan
    from moaa_ray.training.trainer import Workers


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What a training stage did; metrics/<stage>.json."""

    stage: str
    run_dir: str
    num_rows: int
    num_units: int
    num_validation_units: int
    num_tokens: int
    """In the training units, once."""
    dropped: dict[str, int]
    num_steps: int
    last: dict[str, float]
    """The last step's metrics."""
    best_validation: dict[str, float]
    planned: dict[str, float | None] = field(default_factory=dict)
    """What the planner expected of this start with these rows: steps, tokens, seconds; empty: it expected no end."""
    trained_tokens: int = 0
    """Of all steps, prompts included."""
    train_s: float = 0.0
    """Seconds of all steps; what restarts repeated, loading and saving are not in it."""
    num_workers: int = 1
    gpu_s: float = 0.0
    """train_s of every GPU; 0 on CPUs."""
    worked: tuple[float, float] | None = None
    """Unix times at which the first step of this session began and its last one ended; None where none was left."""
    cost_usd: float | None = None
    """gpu_s at the recipe's price; None without one."""
    has_curve: bool = True
    """Whether metrics/<stage>.png was drawn."""
    notes: tuple[str, ...] = ()
    """What people should look at, by the metrics at the end."""

    def text(self) -> str:
        """A few lines for people."""
        kind = "packs" if self.stage == "sft" else "pairs"
        held_out = f", {self.num_validation_units:,} kept for validation" if self.num_validation_units else ""
        lines = [
            f"{self.stage}: {self.num_rows:,} rows, {self.num_units:,} {kind} of {self.num_tokens:,} tokens{held_out}; "
            f"{self.last['step'] + 1:,} of {self.num_steps:,} steps, loss {self.last['loss']:.4f}"
        ]
        if self.dropped:
            lines.append("  dropped: " + ", ".join(f"{rule} {n:,}" for rule, n in sorted(self.dropped.items())))
        if self.best_validation:
            shown = ", ".join(
                f"{k.removeprefix('validation_')} {v:.4f}" for k, v in self.best_validation.items() if k != "step"
            )
            lines.append(f"  best validation at step {self.best_validation['step'] + 1:,}: {shown}")
        lines += [self._against_plan()] if self.planned else []
        lines += [f"  {note}" for note in self.notes]
        curve = f"   curve: {self.run_dir}/metrics/{self.stage}.png" if self.has_curve else ""
        lines.append(f"  model: {self.run_dir}/models/{self.stage}{curve}")
        return "\n".join(lines)

    def _against_plan(self) -> str:
        seconds = self.planned["seconds"]
        time = "" if seconds is None else f", {duration(seconds)}"
        return (
            f"  planned: {self.planned['steps']:,.0f} steps, {self.planned['tokens']:,.0f} tokens{time}; took "
            f"{self.last['step'] + 1:,}, {self.trained_tokens:,}, {duration(self.train_s)}"
        )


def summary_of(
    store: Store,
    stage: Stage,
    prepared: Sequence[Prepared],
    lines: Sequence[Mapping[str, Any]],
    workers: "Workers",
    *,
    since: float,
    gpu_hour_usd: float | None,
    has_curve: bool,
    best_by: str,
    planned: "TrainingPlan | None" = None,
) -> TrainingSummary:
    """What came of the stage, by its lines of metrics; those after `since` (unix time) are of this start."""
    from moaa_ray.training.metrics import validation_score

    validated = [line for line in lines if "validation_loss" in line]
    best = max(validated, key=lambda line: validation_score(line, best_by), default={})
    dropped: Counter[str] = Counter()
    for part in prepared:
        dropped.update(part.dropped)
    train_s = sum(line["seconds"] for line in lines)
    gpu_s = train_s * workers.num * workers.use_gpu
    now = [line for line in lines if line["time"] > since]
    return TrainingSummary(
        stage=stage,
        run_dir=store.uri,
        num_rows=sum(part.num_rows for part in prepared),
        num_units=sum(part.num_units for part in prepared),
        num_validation_units=sum(part.num_validation_units for part in prepared),
        num_tokens=sum(part.num_tokens for part in prepared),
        dropped=dict(dropped),
        num_steps=lines[-1]["num_steps"],
        last=dict(lines[-1]),
        best_validation={k: v for k, v in best.items() if k == "step" or k.startswith("validation_")},
        planned={"steps": planned.num_steps, "tokens": planned.work.tokens, "seconds": planned.seconds}
        if planned
        else {},
        trained_tokens=int(sum(line["tokens"] for line in lines)),
        train_s=train_s,
        num_workers=workers.num,
        gpu_s=gpu_s,
        cost_usd=gpu_s / 3600 * gpu_hour_usd if gpu_hour_usd is not None and workers.use_gpu else None,
        worked=(now[0]["time"] - now[0]["seconds"], now[-1]["time"]) if now else None,
        has_curve=has_curve,
        notes=tuple(filter(None, [falling_note(stage, lines)])),
    )
