"""SFT tokens per CPU second on one thread, against a bare loop of transformers and against TRL.

    python benchmarks/train_sft.py --repeats 3 --out benchmarks/results/train_sft_<where>.json

A 6-layer, 256-wide Llama with 8k words in float32, random weights, 4 packs of 1024 tokens a step, documents from
AlpacaEval (needs ../shared/data, or --data). Tokens are those that are not padding, prompts included; the loss is on
completions alone, everywhere. The first step of a run is not measured; then the contenders take turns of half a second.

    ours            one microbatch of 4 packs; ours_1x4: 4 of one pack
    bare            forward with labels, backward, clip, AdamW on a 4 x 1024 batch. Its attention crosses documents (the
                    cheapest that transformers has), so its loss is not quite the others'
    trl_4           SFTTrainer, packing bfd, batch 4; trl_1x4: batch 1 x accumulation 4
    trl_wrapped_4   packing wrapped, batch 4: cuts documents, and attention crosses them
    trl_unpacked    no packing, one document x as many accumulation steps as a step of the others has documents
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _alpaca_units
import _common
import _training
import torch

from moaa_ray.data.documents import Document

CONTENDERS = ("ours", "ours_1x4", "bare", "trl_4", "trl_1x4", "trl_wrapped_4", "trl_unpacked")


def ours(model: torch.nn.Module, packs: Sequence[Sequence[Document]], *, micro_batch: int) -> _training.Clock:
    """Steps of 4 packs in microbatches of so many."""
    from moaa_ray.training.microbatch import lay_out
    from moaa_ray.training.step import sft_step
    from moaa_ray.training.strategies.base import Numerics, World
    from moaa_ray.training.strategies.single import Single
    from moaa_ray.training.student import Student

    strategy = Single(Student(model), World(), Numerics())
    clock = _training.Clock()
    clock.starts()
    for start in range(0, len(packs), _training.PACKS):
        step = packs[start : start + _training.PACKS]
        micro = [
            lay_out([document for pack in step[i : i + micro_batch] for document in pack])
            for i in range(0, len(step), micro_batch)
        ]
        num_targets = sum(batch.num_targets for batch in micro)
        result = sft_step(strategy, micro, num_targets=num_targets, rate=_training.RATE)
        if clock.step_ended(sum(len(batch.tokens) for batch in micro), result.loss):
            break
    return clock


def bare(model: torch.nn.Module, packs: Sequence[Sequence[Document]]) -> _training.Clock:
    """What a short script would do with the same packs, as rows that are padded at their end."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_training.RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    clock = _training.Clock()
    clock.starts()
    for start in range(0, len(packs), _training.PACKS):
        step = packs[start : start + _training.PACKS]
        tokens = torch.full((len(step), _alpaca_units.MAX_TOKENS), _alpaca_units.PAD)
        labels = torch.full_like(tokens, -100)
        num_tokens = 0
        for row, pack in enumerate(step):
            at = 0
            for document in pack:
                stop = at + len(document.tokens)
                tokens[row, at:stop] = torch.from_numpy(document.tokens)
                labels[row, at:stop] = torch.where(torch.from_numpy(document.counts), tokens[row, at:stop], -100)
                at = stop
            num_tokens += at
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if clock.step_ended(num_tokens, float(loss.detach())):
            break
    return clock


def trl(
    model: torch.nn.Module,
    documents: Sequence[Document],
    folder: Path,
    *,
    steps: int,
    batch: int,
    accumulation: int,
    strategy: str | None = "bfd",
) -> _training.Clock:
    """SFTTrainer on the same tokens, packed by itself; strategy None: not packed."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": d.tokens.tolist(),
            "labels": [int(t) if c else -100 for t, c in zip(d.tokens, d.counts, strict=True)],
        }
        for d in documents
    ]
    clock = _training.Clock()
    packing = {"packing": True, "packing_strategy": strategy} if strategy else {}
    settings = _training.trl_settings(folder, steps=steps, batch=batch, accumulation=accumulation, **packing)
    trainer = _training.timed(SFTTrainer, clock, num_real_tokens)(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=_alpaca_units.load_tokenizer(folder),
    )
    trainer.train()
    return clock


def num_real_tokens(inputs: Mapping[str, Any]) -> int:
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


def measure(name: str, folder: Path, steps: int) -> dict:
    """One run of one contender in this process."""
    torch.set_num_threads(1)
    packs = _alpaca_units.load_units(folder, "packs")[: steps * _training.PACKS]
    documents = [document for pack in packs for document in pack]
    model = _training.make_llama()
    if name.startswith("ours"):
        clock = ours(model, packs, micro_batch=1 if name == "ours_1x4" else _training.PACKS)
    elif name == "bare":
        clock = bare(model, packs)
    elif name == "trl_unpacked":
        clock = trl(model, documents, folder, steps=steps, batch=1, accumulation=len(documents) // steps, strategy=None)
    else:
        batch = 1 if name == "trl_1x4" else _training.PACKS
        strategy = "wrapped" if name == "trl_wrapped_4" else "bfd"
        accumulation = _training.PACKS // batch
        clock = trl(model, documents, folder, steps=steps, batch=batch, accumulation=accumulation, strategy=strategy)
    return clock.facts("tokens")


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    keys = ("tokens_per_cpu_s", "steps", "peak_rss_mb", "mean_loss")
    return {
        **_training.about(load, arguments),
        "ours_over": _training.ratios(runs, "tokens_per_cpu_s", over="ours"),
        "ours_1x4_over": _training.ratios(runs, "tokens_per_cpu_s", over="ours_1x4"),
        "by_contender": {name: _common.spreads(of, keys) for name, of in runs.items()},
        "runs": runs,
    }


def main() -> None:
    _training.run(__file__, __doc__, CONTENDERS, measure, report, steps=90, units_a_step=_training.PACKS, turns=180)


if __name__ == "__main__":
    main()
