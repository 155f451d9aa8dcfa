"""DPO pairs per CPU second on one thread against TRL; the reference's log-probabilities are there before.

    python benchmarks/train_dpo.py --repeats 3 --out benchmarks/results/train_dpo_<where>.json

The model of train_sft.py; pairs are gpt4_1106_preview chosen over Meta-Llama-3.1-8B-Instruct-Turbo on AlpacaEval (needs
../shared/data, or --data), at most 1024 tokens a document, 4 pairs a step, the same in every contender. Training steps
alone are compared, without the first; what the reference pass took is reported apart (ref_pairs_per_cpu_s).

    ours        one microbatch of 4 pairs; ours_1x4: 4 of one pair
    trl_4       DPOTrainer, batch 4, precompute_ref_log_probs; trl_1x4: batch 1 x accumulation 4
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _alpaca_units
import _common
import _training
import numpy as np
import torch

from moaa_ray.data.documents import Document

CONTENDERS = ("ours", "ours_1x4", "trl_4", "trl_1x4")


def ours(model: torch.nn.Module, pairs: Sequence[Sequence[Document]], *, micro_batch: int) -> dict:
    """The reference pass, then steps of 4 pairs in microbatches of so many."""
    from moaa_ray.training.microbatch import lay_out
    from moaa_ray.training.step import PreferenceSettings, document_logprobs, preference_step
    from moaa_ray.training.strategies.base import Numerics, World
    from moaa_ray.training.strategies.single import Single
    from moaa_ray.training.student import Student

    strategy = Single(Student(model), World(), Numerics())

    def batch_of(some: Sequence[Sequence[Document]]):
        return lay_out([document for pair in some for document in pair])

    began = time.process_time()
    with torch.no_grad():
        starts = range(0, len(pairs), micro_batch)
        batches = [batch_of(pairs[i : i + micro_batch]) for i in starts]
        refs = [document_logprobs(strategy.model(batch), batch, None) for batch in batches]
    ref_s = time.process_time() - began

    clock = _training.Clock()
    per_step = _training.PAIRS // micro_batch
    for start in range(0, len(pairs), _training.PAIRS):
        step = pairs[start : start + _training.PAIRS]
        micro = [batch_of(step[i : i + micro_batch]) for i in range(0, len(step), micro_batch)]
        at = start // micro_batch
        result = preference_step(
            strategy,
            micro,
            refs[at : at + per_step],
            PreferenceSettings(),
            num_pairs=len(step),
            num_chosen_targets=sum(pair[0].num_targets for pair in step),
            rate=_training.RATE,
        )
        if clock.step_ended(len(step), result.loss):
            break
    return clock.facts("pairs") | {"ref_pairs_per_cpu_s": len(pairs) / ref_s}


def trl(model: torch.nn.Module, pairs: Sequence[Sequence[Document]], folder: Path, *, batch: int) -> dict:
    """DPOTrainer on the same tokens."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    clock = _training.Clock()
    ref_s = 0.0

    class Tokenized(_training.timed(DPOTrainer, clock, num_pairs)):
        def _prepare_dataset(self, dataset, *args):
            return dataset

        def _precompute_ref_logps(self, *args):
            nonlocal ref_s
            began = time.process_time()
            dataset = super()._precompute_ref_logps(*args)
            ref_s = time.process_time() - began
            return dataset

    accumulation = _training.PAIRS // batch
    steps = len(pairs) // _training.PAIRS
    settings = _training.trl_settings(folder, steps=steps, batch=batch, accumulation=accumulation)
    trainer = Tokenized(
        model=model,
        args=DPOConfig(**settings, beta=0.01, precompute_ref_log_probs=True),
        train_dataset=Dataset.from_list([row_of(*pair) for pair in pairs]),
        processing_class=_alpaca_units.load_tokenizer(folder),
    )
    trainer.train()
    return clock.facts("pairs") | {"ref_pairs_per_cpu_s": len(pairs) / ref_s}


def row_of(chosen: Document, rejected: Document) -> dict[str, list[int]]:
    """The columns that DPOTrainer makes of a pair."""
    starts = [int(np.argmax(document.counts)) for document in (chosen, rejected)]
    return {
        "prompt_ids": chosen.tokens[: starts[0]].tolist(),
        "chosen_ids": chosen.tokens[starts[0] :].tolist(),
        "rejected_ids": rejected.tokens[starts[1] :].tolist(),
    }


def num_pairs(inputs: Mapping[str, Any]) -> int:
    return len(inputs["input_ids"]) // 2


def measure(name: str, folder: Path, steps: int) -> dict:
    """One run of one contender in this process."""
    torch.set_num_threads(1)
    pairs = _alpaca_units.load_units(folder, "pairs")[: steps * _training.PAIRS]
    batch = 1 if name.endswith("1x4") else _training.PAIRS
    model = _training.make_llama()
    found = ours(model, pairs, micro_batch=batch) if name.startswith("ours") else trl(model, pairs, folder, batch=batch)
    num_tokens = [sum(len(document.tokens) for document in pair) for pair in pairs]
    return found | {"tokens_per_pair": sum(num_tokens) / len(pairs)}


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    keys = ("pairs_per_cpu_s", "steps", "ref_pairs_per_cpu_s", "tokens_per_pair", "peak_rss_mb", "mean_loss")
    return {
        **_training.about(load, arguments),
        "ours_over": _training.ratios(runs, "pairs_per_cpu_s", over="ours"),
        "ours_1x4_over": _training.ratios(runs, "pairs_per_cpu_s", over="ours_1x4"),
        "by_contender": {name: _common.spreads(of, keys) for name, of in runs.items()},
        "runs": runs,
    }


def main() -> None:
    _training.run(__file__, __doc__, CONTENDERS, measure, report, steps=40, units_a_step=_training.PAIRS, turns=180)


if __name__ == "__main__":
    main()
