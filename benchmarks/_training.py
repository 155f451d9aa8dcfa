"""What the training benchmarks share: a model to train, a clock around steps, TRL's settings.

Every contender runs in a process of its own, on one thread; what a run found is one line of JSON, its last. Where speed
is measured they take turns of half a second (`_turns.py`), and train until each has had as many.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import _alpaca_units
import _common
import _turns
import psutil
import torch

RATE = 1e-4
PACKS = PAIRS = 4
"""Of an optimizer step."""
TURN_S = 0.5
_SAME_STEPS = 3
"""Steps that even the slowest contender takes in a short run; the losses of those are compared."""


def parser_of(text: str | None, *, steps: int) -> argparse.ArgumentParser:
    """The arguments that all training benchmarks know."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=steps, help="the most optimizer steps that are measured, after one that is not"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat of one step: does it run?")
    parser.add_argument(
        "--data", type=Path, default=_alpaca_units.DATA, help="the folder of the AlpacaEval parquet files"
    )
    parser.add_argument("--folder", type=Path, help="keep the prepared documents here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; --quick has its way."""
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = arguments.repeats = 1
    return arguments


def interleave(script: str, names: Sequence[str], folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """Each contender once, then each once more, and so on: A-B-C-A-B-C. What each run found, by contender."""
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            line = _common.run_apart(command_of(script, name, folder, arguments))
            runs[name].append(json.loads(line))
            print(name, line, file=sys.stderr, flush=True)
    return runs


def by_turns(script: str, names: Sequence[str], folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """All contenders by turns, then all once more. What each run found, by contender.

    "ends" that it found, of time.monotonic(), become "own_s": seconds of its own turns until then.
    """
    commands = {name: command_of(script, name, folder, arguments) for name in names}
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name, one in _turns.take_turns(commands, turn_s=TURN_S, num_turns=arguments.turns or None).items():
            found = one.found
            if "ends" in found:
                found["own_s"] = [one.seconds_until(end) for end in found.pop("ends")]
            runs[name].append(found)
            print(name, json.dumps(found), file=sys.stderr, flush=True)
    return runs


def command_of(script: str, name: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """What runs one contender."""
    return [script, "--one", name, "--folder", str(folder), "--steps", str(arguments.steps)]


def one_thread(folder: Path) -> None:
    """What every contender finds in its environment."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }


def about(load: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The head of a report, with TRL's version."""
    turns = {"turns": arguments.turns, "turn_s": TURN_S} if "turns" in arguments else {}
    found = _common.about(load, steps=arguments.steps, repeats=arguments.repeats, threads=1, **turns)
    return found | {"versions": found["versions"] | {"trl": metadata.version("trl")}}


def ratios(runs: Mapping[str, Sequence[Mapping]], key: str, over: str) -> dict[str, dict[str, float]]:
    """How often the number of contender `over` each other's number is, of runs that stand side by side."""
    return {
        name: _common.spread([a[key] / b[key] for a, b in zip(runs[over], others, strict=True)])
        for name, others in runs.items()
        if name != over
    }


def make_llama(*, vocabulary: int = _alpaca_units.VOCABULARY, layers: int = 6) -> Any:
    """A 256-wide float32 Llama with random weights, the same in every process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4 * _alpaca_units.MAX_TOKENS,
        bos_token_id=_alpaca_units.BOS,
        eos_token_id=_alpaca_units.EOS,
        pad_token_id=_alpaca_units.PAD,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


class Clock:
    """CPU time of this process between the end of the first step and the end of the last.

    With others by turns, the first step is taken alone.
    """

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._done: list[int] = []
        self.losses: list[float] = []
        self.rss_at_start = 0

    def starts(self) -> None:
        """Right before the first step: what is resident now, in bytes, is there to stay."""
        self.rss_at_start = psutil.Process().memory_info().rss

    def step_ended(self, amount: int, loss: float) -> bool:
        """After every optimizer step, how much it trained on (tokens, pairs), and its loss: is it to be the last?"""
        if _turns.has_turns() and not self._ends:
            _turns.pass_gate()
        self._ends.append(time.process_time())
        self._done.append(amount)
        self.losses.append(loss)
        return _turns.has_turns() and _turns.is_over()

    def facts(self, what: str) -> dict[str, Any]:
        """Amounts per CPU second, what they come from, and the process's peak memory."""
        amount, cpu_s = sum(self._done[1:]), self._ends[-1] - self._ends[0]
        return {
            f"{what}_per_cpu_s": amount / cpu_s,
            what: amount,
            "cpu_s": cpu_s,
            "steps": len(self._ends) - 1,
            "peak_rss_mb": peak_rss_bytes() / 1e6,
            "mean_loss": sum(self.losses[:_SAME_STEPS]) / len(self.losses[:_SAME_STEPS]),
        }


def peak_rss_bytes() -> int:
    """The most memory this process has had resident, in bytes (Linux; ru_maxrss also holds what the parent had)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no line VmHWM")


def trl_settings(folder: Path, *, steps: int, batch: int, accumulation: int, **more: Any) -> dict[str, Any]:
    """Arguments of TRL's configs: what the other contenders do as well, and nothing saved or reported."""
    return {
        "output_dir": str(folder / "trl"),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": _alpaca_units.MAX_TOKENS,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }


def timed(trainer_class: type, clock: Clock, amount_of: Callable[[Mapping[str, Any]], int]) -> type:
    """TRL's trainer, its batches in the order of the rows, which tells the clock of every optimizer step."""
    from transformers import TrainerCallback

    class Ticks(TrainerCallback):
        amount, loss = 0, 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            clock.starts()

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= clock.step_ended(self.amount, self.loss)
            self.amount, self.loss = 0, 0.0

    class Timed(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.ticks = Ticks()
            self.add_callback(self.ticks)

        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

        def training_step(self, model, inputs, num_items_in_batch=None):
            self.ticks.amount += amount_of(inputs)
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.ticks.loss += float(loss)
            return loss

    return Timed


def run(
    file: str,
    doc: str | None,
    contenders: Sequence[str],
    measure: Callable[[str, Path, int], dict],
    report: Callable[[dict[str, list[dict]], float, argparse.Namespace], dict],
    *,
    steps: int,
    units_a_step: int,
    turns: int | None = None,
    optional: Sequence[str] = (),
) -> None:
    """The whole of a benchmark: one contender where --one names it, else all of them, and the report.

    turns: of each contender by default, 0 to its end; None: one contender after the other. optional: contenders that
    may be left out.
    """
    parser = parser_of(doc, steps=steps)
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns, help="of every contender, half a second each; 0: all")
    if optional:
        parser.add_argument("--without", nargs="+", choices=optional, default=[], help="contenders that are left out")
    arguments = parse(parser)
    if optional:
        contenders = [name for name in contenders if name not in arguments.without]
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder, arguments.steps + 1)))
        return
    load = _common.load_before()
    with _common.scratch(arguments.folder) as folder:
        one_thread(folder)
        _alpaca_units.prepare(folder, arguments.data, num_units=units_a_step * (arguments.steps + 1))
        runs = (interleave if turns is None else by_turns)(file, contenders, folder, arguments)
    _common.save(report(runs, load, arguments), arguments.out)
