"""What the training benchmarks share: documents and a model to train, a clock around steps, TRL's settings.

Every contender runs in a process of its own, on one thread, and trains on the same tokens: they are made once, by the
project's own tokenization, and laid in a folder. Numbers of one run are one line of JSON, the process's last.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch

from moaa_ray.data.documents import Document

DATA = Path(__file__).parents[2] / "shared" / "data"
STUDENT = "Qwen1.5-110B-Chat"
CHOSEN, REJECTED = "gpt4_1106_preview", "Meta-Llama-3.1-8B-Instruct-Turbo"
MAX_TOKENS = 1024
VOCABULARY = 8192
RATE = 1e-4
PACKS = PAIRS = 4
"""Of an optimizer step."""


def parser_of(text: str | None, *, steps: int) -> argparse.ArgumentParser:
    """The arguments that all training benchmarks know."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=steps, help="optimizer steps that are measured, after one that is not"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat of one step: does it run?")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the AlpacaEval parquet files")
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
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            line = _common.run_apart([script, "--one", name, "--folder", str(folder), "--steps", str(arguments.steps)])
            runs[name].append(json.loads(line))
            print(name, line, file=sys.stderr, flush=True)
    return runs


def ratios(runs: Mapping[str, Sequence[Mapping]], key: str, over: str) -> dict[str, dict[str, float]]:
    """How often the number of contender `over` each other's number is, of runs that stand side by side."""
    return {
        name: _common.spread([a[key] / b[key] for a, b in zip(runs[over], others, strict=True)])
        for name, others in runs.items()
        if name != over
    }


def prepare(folder: Path, data: Path, *, num_units: int) -> None:
    """Write num_units packs of STUDENT's completions and num_units pairs as token arrays; exits where data is absent."""
    if (folder / "documents.npz").exists():
        return
    completions, prompts = (data / f"alpaca_eval_{name}.parquet" for name in ("completions", "prompts"))
    if not (completions.exists() and prompts.exists()):
        sys.exit(f"skipped: {data} has no alpaca_eval_completions.parquet and alpaca_eval_prompts.parquet; give --data")
    import pyarrow.parquet as pq

    from moaa_ray.data.documents import DocumentTokenizer
    from moaa_ray.data.units import UnitSettings, pair_units, sft_units

    asked = {row["id"]: row["prompt"] for row in pq.read_table(prompts).to_pylist()}
    said: dict[str, dict[str, str]] = {}
    for row in pq.read_table(completions).to_pylist():
        said.setdefault(row["model"], {})[row["id"]] = row["completion"]
    words = train_tokenizer([*asked.values(), *(text for of in said.values() for text in of.values())])
    tokenizer = DocumentTokenizer(words)
    settings = UnitSettings(max_tokens=MAX_TOKENS, over_long="truncate", validation_fraction=0.0)
    user = {i: [{"role": "user", "content": text}] for i, text in asked.items()}
    assistant = lambda model, i: [{"role": "assistant", "content": said[model][i]}]  # noqa: E731
    sft = sft_units(
        [{"id": i, "messages": user[i] + assistant(STUDENT, i)} for i in said[STUDENT]], tokenizer, settings
    )
    pairs = pair_units(
        [
            {"id": i, "prompt": user[i], "chosen": assistant(CHOSEN, i), "rejected": assistant(REJECTED, i)}
            for i in said[CHOSEN]
        ],
        tokenizer,
        settings,
    )
    draw = np.random.default_rng(0)
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    save_units(
        folder / "documents.npz",
        {
            name: [units[i].documents for i in draw.permutation(len(units))[:num_units]]
            for name, units in (("packs", sft.train), ("pairs", pairs.train))
        },
    )


def train_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of VOCABULARY words with Llama 3's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from moaa_ray.tiny import LLAMA3

    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[3], pad_token=special[4]
    )
    fast.add_special_tokens({"additional_special_tokens": special[:4]})
    fast.chat_template = LLAMA3
    return fast


def save_units(path: Path, groups: Mapping[str, Sequence[Sequence[Document]]]) -> None:
    """Groups of units, each unit a sequence of documents, as flat arrays."""
    arrays = {}
    for name, units in groups.items():
        documents = [document for unit in units for document in unit]
        arrays[f"{name}.tokens"] = np.concatenate([document.tokens for document in documents])
        arrays[f"{name}.counts"] = np.concatenate([document.counts for document in documents])
        arrays[f"{name}.lengths"] = np.array([len(document.tokens) for document in documents])
        arrays[f"{name}.unit_sizes"] = np.array([len(unit) for unit in units])
    np.savez(path, **arrays)


def load_units(folder: Path, name: str) -> list[list[Document]]:
    """What save_units has saved under this name."""
    arrays = np.load(folder / "documents.npz", allow_pickle=False)
    stops = np.cumsum(arrays[f"{name}.lengths"])[:-1]
    tokens, counts = (np.split(arrays[f"{name}.{what}"], stops) for what in ("tokens", "counts"))
    documents = iter([Document(tokens=t, counts=c) for t, c in zip(tokens, counts, strict=True)])
    return [[next(documents) for _ in range(size)] for size in arrays[f"{name}.unit_sizes"]]


def make_llama(*, vocabulary: int = VOCABULARY, layers: int = 6) -> Any:
    """A 256-wide float32 Llama with random weights, the same in every process; pads with the token 4."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4 * MAX_TOKENS,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=4,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


class Clock:
    """CPU and wall time of this process between the end of the first step and the end of the last."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []
        self._done: list[int] = []
        self.losses: list[float] = []

    def step_ended(self, amount: int, loss: float) -> None:
        """After every optimizer step: how much it trained on (tokens, pairs), and its loss."""
        self._ends.append((time.process_time(), time.perf_counter()))
        self._done.append(amount)
        self.losses.append(loss)

    def facts(self, what: str) -> dict[str, Any]:
        """Amounts per CPU second and per second, what they come from, and the process's peak memory."""
        (cpu_from, wall_from), (cpu_to, wall_to) = self._ends[0], self._ends[-1]
        amount, cpu_s, wall_s = sum(self._done[1:]), cpu_to - cpu_from, wall_to - wall_from
        return {
            f"{what}_per_cpu_s": amount / cpu_s,
            f"{what}_per_s": amount / wall_s,
            what: amount,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "peak_rss_mb": peak_rss_bytes() / 1e6,
            "mean_loss": sum(self.losses) / len(self.losses),
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
        "max_length": MAX_TOKENS,
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

        def on_step_end(self, args, state, control, **kwargs):
            clock.step_ended(self.amount, self.loss)
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
