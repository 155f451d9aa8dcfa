"""Rows -> units, what a training step counts in: a pack of documents for SFT, a pair of two for DPO.

Every row ends in exactly one place: its id in a unit, or a refusal with a rule. Rows are checked here once
more, because a dataset of any origin may be trained on. Left out: reading rows, storing units.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from moaa_ray.core.packing import pack
from moaa_ray.core.seeds import seed_for
from moaa_ray.data.documents import Document, DocumentError, DocumentTokenizer
from moaa_ray.types import Message

OverLong = Literal["drop", "truncate"]
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields beside a message's content, in which datasets of models that think keep their thoughts."""
_HALF = re.compile("[\ud800-\udfff]")
_CUT_FLAG = re.compile(r"truncated:(\d+)")


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
        whose = "max_tokens" if limit == settings.max_tokens else "the student's window (max_position_embeddings)"
        raise DocumentError("over_long", f"{num_tokens} tokens, {whose} is {limit}")
    counted = np.flatnonzero(document.counts[1:limit]) + 1
    if not len(counted):
        raise DocumentError("over_long_prompt", f"the first {limit} of {num_tokens} tokens hold no completion")
    stop = int(counted[-1]) + 1
    return Document(tokens=document.tokens[:stop], counts=document.counts[:stop])


def sft_units(rows: Iterable[Mapping[str, Any]], tokenizer: DocumentTokenizer, settings: UnitSettings) -> UnitSets:
    """Rows with messages (and id, flags) as packs of whole documents, packed apart for training and validation.

    flags: "truncated" says that the last completion was cut at a length, "truncated:<turn>" that the answer to this
    user turn, from 0, was. Refused by rule: those of DocumentTokenizer and `fit`, wrong_type, tool_calls, reasoning.
    """

    def documents_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
        messages = _messages(row, "messages")
        cut_turns = _cut_turns(messages, _flags(row))
        document = tokenizer.conversation(messages, all_tokens=settings.all_tokens, cut_turns=cut_turns)
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return messages[:last], (fit(document, settings),)

    train, validation, dropped, refusals = _in_two(rows, documents_of, settings)
    if settings.packing:
        train, validation = (_packed(part, settings.max_tokens) for part in (train, validation))
    return UnitSets(train, validation, dropped, refusals)


def pair_units(rows: Iterable[Mapping[str, Any]], tokenizer: DocumentTokenizer, settings: UnitSettings) -> UnitSets:
    """Rows with prompt, chosen, rejected (and id, flags), each a list of messages or one text, as pairs.

    chosen and rejected may begin with the prompt's own messages. flags: "chosen_truncated" and "rejected_truncated"
    say that the last completion there was cut at a length. Both documents are fitted, each alone.
    Refused by rule: those of DocumentTokenizer and `fit`, wrong_type, tool_calls, reasoning, other_prompt, and
    same_completions.
    """

    def documents_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
        prompt, flags = _messages(row, "prompt", text_of="user"), _flags(row)
        documents = []
        for column in ("chosen", "rejected"):
            completion = _messages(row, column, text_of="assistant")
            if completion[: len(prompt)] == prompt:
                completion = completion[len(prompt) :]
            if completion and completion[0]["role"] != "assistant":
                said = f"column {column!r} begins with a {completion[0]['role']} message, which is not the prompt's"
                raise DocumentError("other_prompt", said)
            num_turns = sum(message["role"] == "assistant" for message in completion)
            cut_turns = {num_turns - 1} if f"{column}_truncated" in flags else set()
            document = tokenizer.completion(prompt, completion, cut_turns=cut_turns)
            documents.append(fit(document, settings))
        if np.array_equal(documents[0].tokens, documents[1].tokens):
            raise DocumentError("same_completions", "chosen and rejected are the same tokens")
        return prompt, tuple(documents)

    return _in_two(rows, documents_of, settings)


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
            row_id = _id(row)
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


def _id(row: Mapping[str, Any]) -> str:
    value = row.get("id")
    if value is not None and not isinstance(value, str | int):
        raise DocumentError("wrong_type", f"column 'id' holds a {type(value).__name__} instead of text")
    if isinstance(value, str) and _HALF.search(value):
        raise DocumentError("wrong_type", "column 'id' holds half a character (a surrogate)")
    return "" if value is None else str(value)


def _messages(row: Mapping[str, Any], column: str, *, text_of: str = "") -> tuple[Message, ...]:
    """The column's messages; a text is one message of the role text_of, where that is given."""
    value = row.get(column)
    if text_of and isinstance(value, str):
        value = [{"role": text_of, "content": value}]
    if not isinstance(value, list | tuple):
        raise DocumentError("wrong_type", f"column {column!r} holds a {type(value).__name__} instead of messages")
    messages = []
    for i, one in enumerate(value, 1):
        role, content = (one.get("role"), one.get("content")) if isinstance(one, Mapping) else (None, None)
        if not (isinstance(role, str) and isinstance(content, str)):
            raise DocumentError("wrong_type", f"column {column!r}: message {i} lacks a role or content that is text")
        if _HALF.search(role + content):
            raise DocumentError("wrong_type", f"column {column!r}: message {i} holds half a character (a surrogate)")
        if one.get("tool_calls") or one.get("function_call"):
            said = f"column {column!r}: message {i} calls tools, beside its text; write the calls into its content"
            raise DocumentError("tool_calls", said)
        if thought := next((name for name in _THOUGHTS if one.get(name)), ""):
            said = f"column {column!r}: message {i} has a {thought}, which no document would hold; write it into its "
            raise DocumentError("reasoning", said + "content, as the chat template would, or take the field away")
        messages.append(Message(role=role, content=content))
    return tuple(messages)


def _flags(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("flags")
    if value is None:
        return ()
    if not (isinstance(value, list | tuple) and all(isinstance(flag, str) for flag in value)):
        raise DocumentError("wrong_type", f"column 'flags' holds {value!r:.60} instead of a list of text")
    return tuple(value)


def _cut_turns(messages: Sequence[Message], flags: Sequence[str]) -> set[int]:
    """The assistant turns, numbered from 0, whose completions were cut at a length."""
    roles = [message["role"] for message in messages]
    cut = {roles.count("assistant") - 1} if "truncated" in flags else set()
    users = [i for i, role in enumerate(roles) if role == "user"]
    for named in filter(None, map(_CUT_FLAG.fullmatch, flags)):
        turn = int(named[1])
        if turn >= len(users) or roles[users[turn] + 1 : users[turn] + 2] != ["assistant"]:
            raise DocumentError("wrong_type", f"column 'flags': {named[0]!r} names no user turn that has an answer")
        cut.add(roles[: users[turn]].count("assistant"))
    return cut
