"""README.md of an exported model: what it was made from, with the hashes of it, and how; the numbers of its step."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from moaa_ray.loading import RUN, LoadedTraining
from moaa_ray.settings.training import TrainingData
from moaa_ray.training_stage.datasets import Dataset, Stage, StudentFiles

_TITLES = {"sft": "supervised fine-tuning", "dpo": "preference training (DPO)"}
_NO_METRICS = ("step", "num_steps", "time")


def model_card(
    loaded: LoadedTraining,
    stage: Stage,
    student: StudentFiles,
    datasets: Sequence[Dataset],
    fingerprint: Mapping[str, str],
) -> str:
    """Markdown with the metadata block that model hubs read; card_numbers go below it, once there are any."""
    recipe = loaded.recipe
    config = recipe.sft if stage == "sft" else recipe.dpo
    named = recipe.dpo.student if stage == "dpo" else ""
    base = named if named and not named.startswith(RUN) else recipe.student.model
    revision = f" at `{student.revision}`" if student.revision else ""
    made_with = sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:16]
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(base)}",
        "tags: [mixture-of-agents-alignment]",
        "---",
        f"# {recipe.name}: {stage}",
        "",
        f"Made by {_TITLES[stage]} with moaa_ray (Mixture of Agents Alignment, arXiv 2505.03059).",
        "",
        f"* started from: `{student.place}`{revision}, hash of its files `{student.digest}`",
        *(f"* data: `{dataset.place}`{_taken(dataset.config)}, {dataset.digest}" for dataset in datasets),
        f"* made with: `{made_with}`, a hash of the settings, the data, the model that it started from, and the seed",
        f"* seed: {recipe.seed}",
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(config.model_dump(mode="json", exclude={"data"}), indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _taken(data: TrainingData) -> str:
    """What is taken of a dataset, where that is not all of it once in every epoch."""
    set_ones = data.model_dump(exclude={"path"}, exclude_defaults=True)
    return f" ({', '.join(f'{name}: {value}' for name, value in set_ones.items())})" if set_ones else ""


def card_numbers(lines: Sequence[Mapping[str, Any]], best: Mapping[str, float], *, export: str, best_by: str) -> str:
    """The end of a card: which step was exported, and its metrics; best: those of the best validation, {} without.

    lines: the metrics of every step.
    """
    is_best = export == "best" and bool(best)
    exported = next(line for line in lines if line["step"] == best["step"]) if is_best else lines[-1]
    which = f"the best by validation_{best_by}" if is_best else "the last"
    parts = [(f"Exported: {which}, step {exported['step'] + 1:,} of {exported['num_steps']:,}", exported)]
    if best and best["step"] != exported["step"]:
        parts.append((f"Best validation, by validation_{best_by}: step {best['step'] + 1:,}", best))
    text = []
    for title, metrics in parts:
        text += ["", f"## {title}", "", "| metric | value |", "|---|---|"]
        text += [f"| {name} | {value:.6g} |" for name, value in metrics.items() if name not in _NO_METRICS]
    return "\n".join(text) + "\n"
