"""One chunk of a dataset -> one file of training units and one of validation units; what a Ray Data task does."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moaa_ray.data.chunks import Chunk, read_chunk
from moaa_ray.data.documents import DocumentTokenizer
from moaa_ray.data.locations import SourceFiles
from moaa_ray.data.readers import BadRecord
from moaa_ray.data.store import open_store
from moaa_ray.data.student_files import student_folder
from moaa_ray.data.unit_store import write_chunk
from moaa_ray.data.units import UnitSettings, pair_units, sft_units
from moaa_ray.errors import ConfigError

NEEDED = {"sft": ("messages",), "dpo": ("prompt", "chosen", "rejected")}
"""Columns that every row of a stage's datasets has."""
OPTIONAL = {
    "sft": ("id", "flags", "tools", "finish_reason"),
    "dpo": ("id", "flags", "tools", "chosen_finish_reason", "rejected_finish_reason"),
}
"""Columns that are read where they are there."""


@dataclass(frozen=True, kw_only=True)
class ChunkTask:
    """What it takes to prepare one chunk, anywhere in the cluster."""

    stage: Literal["sft", "dpo"]
    run_uri: str
    folder: str
    """Of the source's units in the run; validation units go to <folder>-validation."""
    files: SourceFiles
    chunk: Chunk
    rows: frozenset[int] | None
    """Numbers of the dataset's rows that are taken; None: all."""
    tokenizer: str
    """Where the student is (data/student_files.py)."""
    revision: str
    chat_template: str
    settings: UnitSettings


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """What became of a chunk's rows: rows in = rows in units + dropped."""

    num_rows: int
    num_units: int
    num_validation_units: int
    num_tokens: int
    dropped: Counter = field(default_factory=Counter)
    bad: tuple[tuple[str, str, str], ...] = ()
    """(id, or file and row from 1, rule, detail) of every row that is not trained on."""

    def to_json(self) -> str:
        """As text, for the way back to the driver."""
        return json.dumps(vars(self))

    @staticmethod
    def from_json(text: str) -> "ChunkResult":
        """The result in a text of to_json."""
        known = json.loads(text)
        bad = tuple((row_id, rule, detail) for row_id, rule, detail in known.pop("bad"))
        return ChunkResult(**{**known, "dropped": Counter(known["dropped"])}, bad=bad)


def prepare_chunk(task: ChunkTask) -> ChunkResult:
    """Tokenise and pack the rows of one chunk and write its units."""
    rows, places, bad = [], [], []
    for number, record in read_chunk(task.files, task.chunk, NEEDED[task.stage] + OPTIONAL[task.stage]):
        if task.rows is not None and task.chunk.first + number - task.chunk.start not in task.rows:
            continue
        place = f"{task.files.paths[task.chunk.file]}:{number + 1}"
        if isinstance(record, BadRecord):
            bad.append((place, record.rule, record.detail))
        else:
            rows.append(record)
            places.append(place)
    make = sft_units if task.stage == "sft" else pair_units
    units, validation, _, refused = make(rows, tokenizer_of(task), task.settings)
    store, name = open_store(task.run_uri), f"{task.chunk.first:010d}"
    write_chunk(store, task.folder, name, units)
    write_chunk(store, f"{task.folder}-validation", name, validation)
    bad += [(one.id or places[one.number], one.rule, one.detail) for one in refused]
    return ChunkResult(
        num_rows=len(rows) + len(bad) - len(refused),
        num_units=len(units),
        num_validation_units=len(validation),
        num_tokens=sum(len(document.tokens) for unit in units for document in unit.documents),
        dropped=Counter(rule for _, rule, _ in bad),
        bad=tuple(bad),
    )


def tokenizer_of(task: ChunkTask) -> DocumentTokenizer:
    """What makes documents of a task's rows. Raises ConfigError for a tokenizer or template that cannot."""
    folder = student_folder(task.tokenizer, task.revision)
    tokenizer = student_tokenizer(folder)
    config = json.loads(Path(folder, "config.json").read_bytes())
    num_embeddings = {**config, **(config.get("text_config") or {})}.get("vocab_size", 0)
    if len(tokenizer) > num_embeddings:
        raise ConfigError(
            f"student {task.tokenizer}: its tokenizer has {len(tokenizer):,} tokens, its model only {num_embeddings:,} "
            "embeddings, so it belongs to another model; copy the model's own tokenizer files into the folder"
        )
    return DocumentTokenizer(tokenizer, chat_template=task.chat_template or None)


def student_tokenizer(folder: str):
    """A student's tokenizer. Raises ConfigError where transformers cannot load it without code of its own."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"student {folder}: its tokenizer cannot be loaded ({type(error).__name__}: {said}); copy the model's "
            "tokenizer files once more, tokenizer.json among them"
        ) from error
