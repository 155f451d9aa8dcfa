"""Documents for the training benchmarks: AlpacaEval's completions as packs and pairs, tokenized once, in a folder.

Every contender trains on the tokens that the project's own tokenization has made here.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moaa_ray.data.documents import Document

DATA = Path(__file__).parents[2] / "shared" / "data"
STUDENT = "Qwen1.5-110B-Chat"
CHOSEN, REJECTED = "gpt4_1106_preview", "Meta-Llama-3.1-8B-Instruct-Turbo"
MAX_TOKENS = 1024
VOCABULARY = 8192
SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
BOS, EOS, PAD = 0, 3, 4


def prepare(folder: Path, data: Path, *, num_units: int) -> None:
    """Write a tokenizer, num_units packs of STUDENT's completions and as many pairs; exits where data is absent."""
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
    settings = UnitSettings(
        max_tokens=MAX_TOKENS, document_tokens=MAX_TOKENS, over_long="truncate", validation_fraction=0.0
    )
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

    from moaa_ray.demo.tiny import LLAMA3

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS], pad_token=SPECIAL[PAD]
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[:PAD]})
    fast.chat_template = LLAMA3
    return fast


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that `prepare` has left; TRL asks for one, though all it uses is the padding token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=SPECIAL[EOS], pad_token=SPECIAL[PAD]
    )


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
