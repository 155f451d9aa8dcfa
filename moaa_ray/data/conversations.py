"""What a record means: which column holds what, its messages in our words, and the rules a single row must pass.

The rules and their names are told in sources.py.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moaa_ray.data.readers import no_column
from moaa_ray.errors import ConfigError
from moaa_ray.settings.prompts import ColumnsConfig
from moaa_ray.types import Message

MAX_ID_CHARS = 512
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversation", "conversations"),
    "turns": ("turns",),
    "prompt": ("prompt", "instruction", "question", "text"),
    "system": ("system", "system_prompt"),
    "id": ("id", "prompt_id", "question_id"),
}
_CONTENT = ("messages", "turns", "prompt")  # the first that is there holds the conversation
UNSTORABLE = re.compile("[\0\ud800-\udfff]")

TurnMode = Literal["all", "last"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    kind: str  # one of _CONTENT
    content: str
    system: str | None
    id: str | None
    asked: ColumnsConfig

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.content, self.system, self.id) if name))

    def of(self, record: Mapping[str, Any]) -> "Columns":
        """Those of one record: where the column was guessed and holds nothing in it, what the record has instead."""
        is_named = any(getattr(self.asked, kind) for kind in _CONTENT)
        if is_named or record.get(self.content) is not None:
            return self
        return _guess(self.asked, [name for name, value in record.items() if value is not None]) or self


class UnusableError(Exception):
    """A row that is dropped by a rule; column: where what breaks it stands, None where the whole row does."""

    def __init__(self, rule: str, detail: str, messages: Sequence[Message] = (), *, column: str | None = None):
        super().__init__(f"column {column!r}: {detail}" if column else detail)
        self.rule, self.messages = rule, messages


def find_columns(config: ColumnsConfig, names: Sequence[str], *, where: str, file: str) -> Columns:
    given = {role: column for role, column in config if column}
    for role, column in given.items():
        if column not in names:
            raise no_column(f"{where}.{role}", column, names)
    kinds = [kind for kind in _CONTENT if kind in given]
    if len(kinds) > 1 or (kinds == ["messages"] and "system" in given):
        raise ConfigError(
            f"{where}: {', '.join(given)} are set; set one of {', '.join(_CONTENT)} (system not beside "
            "messages), and leave the others out"
        )
    columns = _guess(config, names)
    if columns is None:
        known = ", ".join(name for one in _CONTENT for name in USUAL_NAMES[one])
        raise ConfigError(
            f"{where}: none of the columns {list(names)[:20]} of {file} is called {known}; name the one with prompts"
        )
    return columns


def _guess(config: ColumnsConfig, names: Sequence[str]) -> Columns | None:
    """The columns that are named and, for the rest, those of a usual name; None without one that holds prompts."""
    usual = {role: next((n for n in known if n in names), None) for role, known in USUAL_NAMES.items()}
    usual |= {role: column or None for role, column in config if column is not None}
    kinds = [kind for kind in _CONTENT if getattr(config, kind)] or _CONTENT
    kind = next((kind for kind in kinds if usual[kind]), None)
    if kind is None:
        return None
    system = None if kind == "messages" else usual["system"]
    return Columns(kind=kind, content=usual[kind] or "", system=system, id=usual["id"], asked=config)


def to_messages(record: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """The messages as the record gives them, roles in our words. Raises UnusableError."""
    value, column = record.get(columns.content), columns.content
    if value is None:
        raise UnusableError("empty", "holds nothing", column=column)
    if isinstance(value, str) and columns.kind != "prompt":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnusableError("wrong_type", f"is neither a list nor JSON: {error}", column=column) from error
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise UnusableError("wrong_type", f"holds {type(value).__name__}, not text or a list", column=column)
    messages = tuple(_message(one, column) for one in value)
    system = record.get(columns.system) if columns.system else None
    if system is not None and not isinstance(system, str):
        raise UnusableError("wrong_type", f"holds {type(system).__name__} instead of text", column=columns.system)
    return (Message(role="system", content=system), *messages) if system and system.strip() else messages


def _message(value: object, column: str) -> Message:
    if isinstance(value, str):
        return Message(role="user", content=value)
    if not isinstance(value, dict):
        detail = f"a message is {type(value).__name__}; it must be text or hold role and content"
        raise UnusableError("wrong_type", detail, column=column)
    role, content = (_first(value, *names) for names in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or not isinstance(content, str):
        raise UnusableError("wrong_type", "a message lacks role or content as text", column=column)
    if role not in ROLES:
        raise UnusableError("unknown_role", f"role {role[:40]!r}; known are {', '.join(ROLES)}", column=column)
    return Message(role=ROLES[role], content=content)


def _first(value: Mapping[str, Any], *names: str) -> object:
    """The first that is not null: where rows of both kinds were put into one table, each has the other's names too."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def check_messages(messages: tuple[Message, ...], *, max_chars: int, column: str) -> None:
    roles = [message["role"] for message in messages]
    if "user" not in roles or not all(m["content"].strip() for m in messages if m["role"] == "user"):
        raise UnusableError("empty", "no user message, or one without text", messages, column=column)
    if any(
        (role == "system" and i) or (role == "assistant" and (not i or roles[i - 1] != "user"))
        for i, role in enumerate(roles)
    ):
        raise UnusableError("bad_order", f"roles in the order {', '.join(roles[:10])}", messages, column=column)
    total = num_chars(messages)
    if total > max_chars:
        detail = f"{total} characters, prompts.max_chars = {max_chars}"
        raise UnusableError("over_long", detail, messages, column=column)


def given_id(record: Mapping[str, Any], columns: Columns) -> str | None:
    value = record.get(columns.id) if columns.id else None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**40:
        return str(value)
    if value is None or (
        isinstance(value, str) and value.strip() and len(value) <= MAX_ID_CHARS and not UNSTORABLE.search(value)
    ):
        return value
    detail = f"id {value!r:.60} is no integer or clean text of 1 to {MAX_ID_CHARS} characters"
    raise UnusableError("bad_id", detail, column=columns.id)


def num_chars(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def start_turns(messages: Sequence[Message], mode: TurnMode) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """What the first answer is asked on, and the user turns still to come.

    all: the system message and the first user turn; the dataset's assistant turns are left out.
    last: everything up to the last user turn, and nothing to come.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    assert users, "ingest keeps only prompts with a user message"
    if mode == "last":
        return tuple(messages[: users[-1] + 1]), ()
    system = [message for message in messages if message["role"] == "system"]
    return (*system, messages[users[0]]), tuple(messages[i]["content"] for i in users[1:])


def digest_of(*parts: str) -> bytes:
    """16 bytes that depend on every part and on where one ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part.encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.digest()
