"""Rows -> units, what a training step counts in: a pack of documents for SFT, a pair of two for DPO.

Every row ends in exactly one place: its id in a unit, or a refusal with a rule. Rows are checked here once
more, because a dataset of any origin may be trained on. Left out: what a row says (row_messages.py), reading rows,
storing units.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from moaa_ray.core.packing import pack
from moaa_ray.core.seeds import seed_for
from moaa_ray.data.documents import Document, DocumentError, DocumentTokenizer
from moaa_ray.data.row_messages import conversation, cut_turns, id_of
from moaa_ray.types import Message

OverLong = Literal["drop", "truncate"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A pack: one id per document. A pair: one id, and the documents chosen and rejected."""

    ids: tuple[str, ...]
    documents: tuple[Document, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.tokens) for document in self.documents)

    @property
    def num_targets(self) -> int:
        """Tokens of all documents whose prediction counts."""
        return sum(document.num_targets for document in self.documents)


@dataclass(frozen=True, kw_only=True)
class UnitSettings:
    """How rows become units. packing and all_tokens are of SFT alone."""

    max_tokens: int
    """Of a pack."""
    document_tokens: int
    """Of a document: max_tokens, or less where the student reads less at once."""
    over_long: OverLong
    validation_fraction: float
    """Of prompts, in [0, 1)."""
    packing: bool = True
    all_tokens: bool = False


class Refusal(NamedTuple):
    """A row that is in no unit, and why."""

    id: str
    rule: str
    detail: str
    number: int
    """Of the row among those of the call, from 0."""


class UnitSets(NamedTuple):
    """All rows of a call: in units to train on, in units to validate on, or refused."""

    train: list[Unit]
    validation: list[Unit]
    dropped: Counter[str]
    """Refused rows by rule."""
    refusals: list[Refusal]


def fit(document: Document, settings: UnitSettings) -> Document:
    """The document at most document_tokens long: as it is, or cut at the end and ending in a token that counts.

    Raises DocumentError: over_long (drop), over_long_prompt (truncate, and nothing that counts is left).
    """
    num_tokens, limit = len(document.tokens), settings.document_tokens
    if num_tokens <= limit:
        return document
    if settings.over_long == "drop":
        whose = "max_tokens" if limit == settings.max_tokens else "the student's window (positions in its config.json)"
        raise DocumentError("over_long", f"{num_tokens} tokens, {whose} is {limit}")
    counted = np.flatnonzero(document.counts[1:limit]) + 1
    if not len(counted):
        raise DocumentError("over_long_prompt", f"the first {limit} of {num_tokens} tokens hold no completion")
    stop = int(counted[-1]) + 1
    return Document(tokens=document.tokens[:stop], counts=document.counts[:stop])


def sft_units(rows: Iterable[Mapping[str, Any]], tokenizer: DocumentTokenizer, settings: UnitSettings) -> UnitSets:
    """Rows with messages (and id, flags, finish_reason) as packs of whole documents, training and validation apart.

    Which completions were cut at a length: see row_messages.cut_turns. Refused by rule: those of DocumentTokenizer and
    `fit`, wrong_type, tools, tool_calls, reasoning, weight.
    """

    def documents_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
        said = conversation(row, "messages")
        cut = cut_turns(row, said)
        document = tokenizer.conversation(said.messages, all_tokens=settings.all_tokens, cut_turns=cut)
        if settings.all_tokens and len(document.tokens) > settings.document_tokens:
            # Cut like any other: prompts are learnt here too, but one that is cut would be learnt without an answer.
            tokens = fit(tokenizer.conversation(said.messages, cut_turns=cut), settings).tokens
            document = Document(tokens=tokens, counts=document.counts[: len(tokens)])
        last = max(i for i, role in enumerate(said.roles) if role == "assistant")
        return said.messages[:last], (fit(document, settings),)

    train, validation, dropped, refusals = _in_two(rows, documents_of, settings)
    if settings.packing:
        train, validation = (_packed(part, settings.max_tokens) for part in (train, validation))
    return UnitSets(train, validation, dropped, refusals)


def pair_units(rows: Iterable[Mapping[str, Any]], tokenizer: DocumentTokenizer, settings: UnitSettings) -> UnitSets:
    """Rows with prompt, chosen, rejected, each a list of messages or one text (and id, flags, ...), as pairs.

    chosen and rejected may begin with the prompt's own messages. Which completions were cut at a length: see
    row_messages.cut_turns. Both documents are fitted, each alone. Refused by rule: those of DocumentTokenizer and
    `fit`, wrong_type, tools, tool_calls, reasoning, weight, other_prompt, repeated_prompt, and same_completions.
    """

    def documents_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
        _check_texts(row)
        prompt = conversation(row, "prompt", text_of="user").messages
        documents = []
        for column in ("chosen", "rejected"):
            said = conversation(row, column, text_of="assistant")
            if said.messages[: len(prompt)] == prompt:
                said = said.after(len(prompt))
            if said.messages and said.roles[0] != "assistant":
                why = f"column {column!r} begins with a {said.roles[0]} message, which is not the prompt's"
                raise DocumentError("other_prompt", why)
            cut = cut_turns(row, said, of=f"{column}_")
            documents.append(fit(tokenizer.completion(prompt, said.messages, cut_turns=cut), settings))
        if np.array_equal(documents[0].tokens, documents[1].tokens):
            raise DocumentError("same_completions", "chosen and rejected are the same tokens")
        return prompt, tuple(documents)

    return _in_two(rows, documents_of, settings)


def _check_texts(row: Mapping[str, Any]) -> None:
    """Refuse a pair of texts that both repeat the prompt's: it would stand in the document twice.

    It is not taken away, as it is from messages: answers to a short prompt may well begin with its words.
    """
    prompt, *texts = (row.get(column) for column in ("prompt", "chosen", "rejected"))
    if not (isinstance(prompt, str) and prompt.strip()):
        return
    if all(isinstance(text, str) and text.startswith(prompt) for text in texts):
        said = "chosen and rejected both begin with the text of the prompt; take it away there, or write messages"
        raise DocumentError("repeated_prompt", said)


def prompt_id(prompt: Sequence[Message]) -> str:
    """The id of a row that has none: of its prompt alone, so rows of one prompt stay together."""
    parts = [[message["role"], message["content"]] for message in prompt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def is_validation(row_id: str, fraction: float) -> bool:
    """Whether rows of this id are validated on; the same in every run, stage and dataset.

    What follows a # tells several answers to one prompt apart (combined baselines): they stay together.
    """
    return seed_for(0, "validation", row_id.split("#")[0]) / 2**53 < fraction


def _in_two(
    rows: Iterable[Mapping[str, Any]],
    documents_of: Callable[[Mapping[str, Any]], tuple[tuple[Message, ...], tuple[Document, ...]]],
    settings: UnitSettings,
) -> UnitSets:
    """One unit per row that documents_of makes documents of; it also gives the prompt, for an id."""
    sets = UnitSets([], [], Counter(), [])
    for number, row in enumerate(rows):
        row_id = ""
        try:
            row_id = id_of(row)
            prompt, documents = documents_of(row)
        except DocumentError as error:
            sets.dropped[error.rule] += 1
            sets.refusals.append(Refusal(row_id, error.rule, error.detail, number))
            continue
        row_id = row_id or prompt_id(prompt)
        part = sets.validation if is_validation(row_id, settings.validation_fraction) else sets.train
        part.append(Unit(ids=(row_id,), documents=documents))
    return sets


def _packed(units: list[Unit], max_tokens: int) -> list[Unit]:
    """The same documents with fewer units."""
    return [
        Unit(
            ids=tuple(row_id for i in numbers for row_id in units[i].ids),
            documents=tuple(document for i in numbers for document in units[i].documents),
        )
        for numbers in pack([unit.num_tokens for unit in units], max_tokens)
    ]
