"""Working memory of SFT as the vocabulary grows, against TRL at the same microbatch.

    python benchmarks/head_memory.py --repeats 3 --out benchmarks/results/head_memory_<where>.json

Working memory comes on top of what every training in float32 must hold: peak RSS - (imports + weights + gradients +
optimizer state). Imports and weights are what is resident when training begins, documents too; gradients and AdamW's
state are three times the weights. The model is a 2-layer, 256-wide Llama, untied; a step is 4 packs of 1024 tokens (the
documents of train_sft.py), as one microbatch (4) or as four of one pack (1x4), where a new gradient of the output layer
stands beside the one it is added to. TRL is SFTTrainer with packing bfd.

growth_in_buffers: what V -> 2V words add, in output-layer gradients of the V words added, [V, D] float32.
"""

import argparse
from pathlib import Path

import _alpaca_units
import _common
import _training
import torch
import train_sft

VOCABULARIES = {"64k": 2**16, "128k": 2**17, "256k": 2**18}
MICROBATCHES = {"4": 4, "1x4": 1}
CONTENDERS = tuple(
    f"{name}_{words}_{micro}"
    for micro in MICROBATCHES
    for name, words in (("ours", "128k"), ("trl", "128k"), ("ours", "64k"), ("ours", "256k"))
)


def measure(contender: str, folder: Path, steps: int) -> dict:
    """Memory of one run in this process, in MB."""
    torch.set_num_threads(1)
    name, words, micro = contender.split("_")
    packs = _alpaca_units.load_units(folder, "packs")[: steps * _training.PACKS]
    micro_batch = MICROBATCHES[micro]
    model = _training.make_llama(vocabulary=VOCABULARIES[words], layers=2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if name == "ours":
        clock = train_sft.ours(model, packs, micro_batch=micro_batch)
    else:
        documents = [document for pack in packs for document in pack]
        accumulation = _training.PACKS // micro_batch
        clock = train_sft.trl(model, documents, folder, steps=steps, batch=micro_batch, accumulation=accumulation)
    peak = _training.peak_rss_bytes()
    return {
        "working_mb": (peak - clock.rss_at_start - 3 * weights) / 1e6,
        "peak_rss_mb": peak / 1e6,
        "rss_at_start_mb": clock.rss_at_start / 1e6,
        "weights_mb": weights / 1e6,
        "head_gradient_mb": model.config.vocab_size * model.config.hidden_size * 4 / 1e6,
        "mean_loss": sum(clock.losses) / len(clock.losses),
    }


def growth(by_contender: dict[str, dict], micro: str) -> dict[str, float]:
    """What each doubling of the vocabulary adds to our working memory, in gradients of the words added."""
    pairs = (("64k", "128k"), ("128k", "256k"))
    found = {}
    for fewer, more in pairs:
        small, large = (by_contender[f"ours_{words}_{micro}"] for words in (fewer, more))
        added = large["working_mb"]["median"] - small["working_mb"]["median"]
        found[f"{fewer}_to_{more}"] = added / small["head_gradient_mb"]["median"]
    return found


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    keys = ("working_mb", "peak_rss_mb", "rss_at_start_mb", "weights_mb", "head_gradient_mb", "mean_loss")
    found = {name: _common.spreads(of, keys) for name, of in runs.items()}
    of_trl = {
        micro: _common.spread(
            [
                a["working_mb"] / b["working_mb"]
                for a, b in zip(runs[f"ours_128k_{micro}"], runs[f"trl_128k_{micro}"], strict=True)
            ]
        )
        for micro in MICROBATCHES
    }
    return {
        **_training.about(load, arguments),
        "ours_of_trl": of_trl,
        "growth_in_buffers": {micro: growth(found, micro) for micro in MICROBATCHES},
        "by_contender": found,
        "runs": runs,
    }


def main() -> None:
    _training.run(__file__, __doc__, CONTENDERS, measure, report, steps=1, units_a_step=_training.PACKS)


if __name__ == "__main__":
    main()
