"""Write the demo's files: trained models to jobs/models, prompts to jobs/data.

    python -m benchmarks.skills.ship [--models runs/skills/models]

The same seed gives the same bytes on the same machine; the prompts of the splits never meet (moaa_ray/demo/tasks.py).
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from benchmarks.skills.specialists import make_models
from moaa_ray.demo.tasks import SKILLS, Split, questions

JOBS = Path("jobs")
_SHIPPED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "upbringing.json")  # fmt: skip
PROMPTS: dict[str, tuple[Split, slice]] = {
    "skills": ("loop", slice(0, 60)),
    "skills_dpo": ("loop", slice(60, 360)),
    "skills_held_out": ("held_out", slice(0, 100)),
}
"""By file name, the split and which of its questions, by their number within each skill."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/skills/models"), help="made here where missing")
    torch.set_num_threads(1)
    for name, folder in make_models(parser.parse_args().models).items():
        (JOBS / "models" / name).mkdir(parents=True, exist_ok=True)
        for file in _SHIPPED:
            shutil.copy(folder / file, JOBS / "models" / name / file)
    for name, (split, part) in PROMPTS.items():
        write_prompts(JOBS / "data" / f"{name}.jsonl", split, part)


def write_prompts(path: Path, split: Split, part: slice) -> None:
    """One conversation a line, skills in turn."""
    asked = questions(split, part.stop, seed=0)[part.start * len(SKILLS) :]
    first = part.start * len(SKILLS) + 1
    rows = [{"id": f"{split}-{i:04d}", "messages": list(question.messages)} for i, question in enumerate(asked, first)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
