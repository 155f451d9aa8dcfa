"""SFT and DPO steps on one GPU: tokens a second, MFU, peak memory, and the rate of a bare matrix product beside them.

    python benchmarks/gpu_training.py --out benchmarks/results/gpu_training_<gpu>.json

Needs torch >= 2.11 with CUDA and transformers, neither Ray nor a network. The model has Llama-3.2-3B's shape with
random weights, bf16 on float32 masters, by strategy fsdp2 in a world of one, without activation checkpointing.
Documents have the lengths of AlpacaEval's prompts and completions (alpaca_lengths.json) and random tokens: packs of
4,096 for SFT (Qwen1.5-110B-Chat's), pairs of gpt4_1106_preview over Meta-Llama-3.1-8B-Instruct-Turbo for DPO. Steps
are whole: forward, backward, clip, AdamW. The first ones, which compile, are not measured.

Operations are counted as flops.step_flops counts them: no recomputation, no padding, logits only of targets, a shared
prompt once. MFU is of 989e12 a second (H100, H200, dense bf16).

    sft, dpo        as above; dpo_unshared: both documents of a pair have their prompt
    sft_eager       without torch.compile
    sft_regathered  with keep_gathered off: every microbatch gathers the weights twice
    trl_2, trl_1    TRL's SFTTrainer, packing bfd, batch 2 or 1, on the same documents (needs trl)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _gpu_training
import numpy as np
import torch


def chunks(units: Sequence, size: int) -> Iterator[Sequence]:
    return (units[i : i + size] for i in range(0, len(units), size))


class Bench:
    """One model, trained by what its parts are asked for, one after the other."""

    def __init__(self, arguments: argparse.Namespace):
        import torch.distributed as dist

        from moaa_ray.training.flops import shape_of
        from moaa_ray.training.strategies.base import Numerics, World
        from moaa_ray.training.strategies.fsdp2 import Fsdp2
        from moaa_ray.training.student import Student

        self.arguments = arguments
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            init_method=f"tcp://127.0.0.1:{29500 + os.getpid() % 500}",
            rank=0,
            world_size=1,
        )
        model = _gpu_training.make_model(arguments.shape, self.device)
        self.shape = shape_of(model)
        self.num_weights = sum(p.numel() for p in model.parameters())
        numerics = Numerics(is_bf16=True, compile=arguments.compile, keep_gathered=arguments.keep_gathered)
        self.strategy = Fsdp2(Student(model), World(device=self.device), numerics)

    def sft(self) -> dict:
        """Steps on packs."""
        from moaa_ray.training.microbatch import lay_out
        from moaa_ray.training.step import sft_step

        size = self.arguments.micro_packs
        units = _gpu_training.make_packs(self.num_units(self.arguments.packs), self.shape.vocabulary)
        steps = [
            [lay_out([d for one in hand for d in one]).to(self.device) for hand in chunks(step, size)]
            for step in chunks(units, self.arguments.packs)
        ]

        def step(i: int) -> float:
            num_targets = sum(batch.num_targets for batch in steps[i])
            return sft_step(self.strategy, steps[i], num_targets=num_targets, rate=_gpu_training.RATE).loss

        return self.measured(steps, step)

    def dpo(self, *, share: bool) -> dict:
        """Steps on pairs, whose reference is the model as it is before the first."""
        from moaa_ray.training.microbatch import lay_out
        from moaa_ray.training.step import PreferenceSettings, document_logprobs, preference_step

        size = self.arguments.micro_pairs
        units = _gpu_training.make_pairs(self.num_units(self.arguments.pairs), self.shape.vocabulary)
        steps = [
            [
                lay_out([d for one in hand for d in one], share_prompts=share).to(self.device)
                for hand in chunks(step, size)
            ]
            for step in chunks(units, self.arguments.pairs)
        ]
        with torch.no_grad():
            refs = [[document_logprobs(self.strategy.model(b), b, None) for b in batches] for batches in steps]

        def step(i: int) -> float:
            num_chosen = int(sum(batch.counts[::2].sum() for batch in steps[i]))
            return preference_step(
                self.strategy,
                steps[i],
                refs[i],
                PreferenceSettings(),
                num_pairs=self.arguments.pairs,
                num_chosen_targets=num_chosen,
                rate=_gpu_training.RATE,
            ).loss

        return self.measured(steps, step) | {
            "tokens_per_pair_twice": float(_gpu_training.lengths()[:, [0, 0, 2, 3]].sum(1).mean())
        }

    def num_units(self, a_step: int) -> int:
        return a_step * (self.arguments.warm_up + self.arguments.steps)

    def measured(self, steps: Sequence, step: Callable[[int], float]) -> dict:
        """Time every step but the first ones."""
        from moaa_ray.training.flops import step_flops

        seconds, losses, mfus, tokens = [], [], [], []
        for i, batches in enumerate(steps):
            self.wait()
            began = time.perf_counter()
            losses.append(step(i))
            self.wait()
            took = time.perf_counter() - began
            if i < self.arguments.warm_up:
                print(f"  warm-up step {i}: {took:.1f} s", file=sys.stderr, flush=True)
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                continue
            documents = [shape for batch in batches for shape in batch.spans.shapes]
            operations = step_flops(self.shape, documents, sum(batch.num_targets for batch in batches))
            seconds.append(took)
            mfus.append(operations / took / 989e12)
            tokens.append(sum(len(batch.tokens) for batch in batches))
        if self.arguments.profile:
            self.profile(step, len(steps) - 1)
        return {
            "mfu": _gpu_training.spread(mfus),
            "tokens_per_s": _gpu_training.spread([n / s for n, s in zip(tokens, seconds, strict=True)]),
            "step_s": _gpu_training.spread(seconds),
            "tokens_a_step": float(np.mean(tokens)),
            "documents_a_microbatch": float(np.mean([b.num_documents for batches in steps for b in batches])),
            "targets_share": float(np.mean([b.num_targets / len(b.tokens) for batches in steps for b in batches])),
            "losses": losses,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None,
        }

    def profile(self, step: Callable[[int], float], last: int) -> None:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as torch_profile

        with torch_profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            step(last)
            self.wait()
        table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
        with Path(self.arguments.profile).open("a", encoding="utf-8") as file:
            file.write(table + "\n")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def matmul_rate(size: int = 8192) -> dict:
    """bf16 operations a second of a large square product, and of the model's own largest one."""
    found = {}
    for name, (m, k, n) in {
        "square": (size, size, size),
        "up_projection": (4 * _gpu_training.PACK_TOKENS, 3072, 8192),
    }.items():
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        rates = []
        for i in range(15):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(10):
                a @ b
            torch.cuda.synchronize()
            if i >= 5:
                rates.append(10 * 2 * m * k * n / (time.perf_counter() - began))
        found[name] = _gpu_training.spread(rates)
    return found


def one(part: str, arguments: argparse.Namespace) -> dict:
    """One contender, in this process."""
    if part.startswith("matmul"):
        return matmul_rate()
    if part.startswith("trl"):
        import _gpu_trl

        return _gpu_trl.measure(batch=int(part.split("_")[1]), arguments=arguments)
    arguments.compile = part != "sft_eager"
    arguments.keep_gathered = part != "sft_regathered"
    bench = Bench(arguments)
    facts = bench.sft() if part.startswith("sft") else bench.dpo(share=part == "dpo")
    return facts | {"weights": bench.num_weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        default="matmul,sft,dpo,dpo_unshared,trl_2,trl_1,sft_regathered,sft_eager,matmul_after",
        help="contenders, by comma, each in a process of its own",
    )
    parser.add_argument("--shape", choices=_gpu_training.SHAPES, default="3b")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--packs", type=int, default=16, help="a step")
    parser.add_argument("--micro-packs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=48, help="a step")
    parser.add_argument("--micro-pairs", type=int, default=12)
    parser.add_argument("--profile", help="append tables of the last step's kernels to this file")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments)))
        return
    found: dict[str, Any] = {"about": about()}
    for part in arguments.parts.split(","):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *sys.argv, "--one", part], stdout=subprocess.PIPE, text=True, check=False
        )
        answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.returncode}
        found[part] = answer
        print(f"{part}: {time.perf_counter() - began:.0f} s in all", file=sys.stderr, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def about() -> dict:
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    command = " ".join(["python", "benchmarks/gpu_training.py", *sys.argv[1:]])
    return {"command": command, "device": name, "torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
