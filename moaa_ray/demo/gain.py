"""The end of the demo: what its models get right of prompts that none of them was made or trained with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from moaa_ray.demo.tasks import SKILLS, Question, accuracy

_BATCH = 200
_MAX_TOKENS = 12


def held_out(path: Path) -> list[Question]:
    """The questions of a JSON Lines file of conversations."""
    with path.open(encoding="utf-8") as lines:
        return [Question.of(json.loads(line)["messages"]) for line in lines]


def shares_right(folder: str | Path, asked: Sequence[Question]) -> dict[str, float]:
    """By skill, the share of questions that a model's likeliest completion gets right; under "all", of all of them."""
    completions = _likeliest(folder, asked)
    right = [accuracy(question.prompt, text) for question, text in zip(asked, completions, strict=True)]
    shares = {}
    for skill in SKILLS:
        of_skill = [one for question, one in zip(asked, right, strict=True) if question.skill == skill]
        shares[skill] = sum(of_skill) / len(of_skill)
    return {**shares, "all": sum(right) / len(right)}


def render_gain(models: Mapping[str, str | Path], asked: Sequence[Question]) -> str:
    """A table of what each model gets right, by what it is called."""
    columns = [*SKILLS, "all"]
    lines = [f"right of {len(asked)} held-out prompts, in %", f"  {'':<24}" + "".join(f"{name:>9}" for name in columns)]
    for name, folder in models.items():
        shares = shares_right(folder, asked)
        lines.append(f"  {name:<24}" + "".join(f"{100 * shares[column]:>9.0f}" for column in columns))
    return "\n".join(lines)


def _likeliest(folder: str | Path, asked: Sequence[Question]) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    texts: list[str] = []
    for start in range(0, len(asked), _BATCH):
        prompts = [list(question.messages) for question in asked[start : start + _BATCH]]
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        found = model.generate(**encoded, max_new_tokens=_MAX_TOKENS, do_sample=False)  # pyright: ignore
        texts += tokenizer.batch_decode(found[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
