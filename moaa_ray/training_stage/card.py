"""README.md of an exported model: what it was made from and how, and the numbers it ended with."""

import json
from collections.abc import Mapping

from moaa_ray.loading import LoadedTraining
from moaa_ray.training_stage.datasets import PUBLISHED, Stage

_TITLES = {"sft": "supervised fine-tuning", "dpo": "preference training (DPO)"}


def model_card(
    loaded: LoadedTraining, stage: Stage, last: Mapping[str, float], best_validation: Mapping[str, float]
) -> str:
    """Markdown with the metadata block that model hubs read. Metrics are left out where they are not known yet."""
    recipe = loaded.recipe
    config = recipe.sft if stage == "sft" else recipe.dpo
    sources = [part.path for part in config.data] or [f"{loaded.run_dir}/{PUBLISHED[stage][0]}"]
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(recipe.student.model)}",
        "tags: [mixture-of-agents-alignment]",
        "---",
        f"# {recipe.name}: {stage}",
        "",
        f"Made by {_TITLES[stage]} with moaa_ray (Mixture of Agents Alignment, arXiv 2505.03059).",
        "",
        f"* student: `{recipe.student.model}`",
        *(f"* data: `{source}`" for source in sources),
        f"* seed: {recipe.seed}",
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(config.model_dump(mode="json", exclude={"data"}), indent=2),
        "```",
    ]
    for title, found in (("Last step", last), ("Best validation", best_validation)):
        if found:
            lines += ["", f"## {title}", "", "| metric | value |", "|---|---|"]
            lines += [f"| {name} | {value:.6g} |" for name, value in found.items()]
    return "\n".join(lines) + "\n"
