"""What a row says: its messages, and which of its completions stopped at a length, whoever wrote it.

Every reading is checked, and a row that holds something else is refused by the column's name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moaa_ray.data.documents import DocumentError
from moaa_ray.types import CUT_SHORT, Message

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields beside a message's content, in which datasets of models that think keep their thoughts."""
_HALF = re.compile("[\ud800-\udfff]")
_CUT_FLAG = re.compile(r"truncated:(\d+)")


class Conversation(NamedTuple):
    """The messages of a column."""

    messages: tuple[Message, ...]
    cut: frozenset[int]
    """The places of assistant messages that say themselves that they were cut, by their finish_reason."""

    def after(self, num_messages: int) -> "Conversation":
        """The same without its first messages."""
        return Conversation(
            self.messages[num_messages:], frozenset(i - num_messages for i in self.cut if i >= num_messages)
        )

    @property
    def roles(self) -> list[str]:
        """The role of every message."""
        return [message["role"] for message in self.messages]

    @property
    def cut_turns(self) -> set[int]:
        """The assistant turns, numbered from 0, that say themselves that they were cut."""
        return {self.roles[:place].count("assistant") for place in self.cut}


def id_of(row: Mapping[str, Any]) -> str:
    """The row's id as text; empty where it has none."""
    value = row.get("id")
    if value is not None and not isinstance(value, str | int):
        raise DocumentError("wrong_type", f"column 'id' holds a {type(value).__name__} instead of text")
    if isinstance(value, str) and _HALF.search(value):
        raise DocumentError("wrong_type", "column 'id' holds half a character (a surrogate)")
    return "" if value is None else str(value)


def conversation(row: Mapping[str, Any], column: str, *, text_of: str = "") -> Conversation:
    """The column's messages; a text is one message of the role text_of, where that is given.

    Raises DocumentError: wrong_type, tools, tool_calls, reasoning, weight.
    """
    if row.get("tools") not in (None, "", [], (), "[]", "null"):
        said = "column 'tools' offers tools, which no document would show; write them into the system message"
        raise DocumentError("tools", f"{said}, or leave the column out")
    value = row.get(column)
    if text_of and isinstance(value, str):
        value = [{"role": text_of, "content": value}]
    if not isinstance(value, list | tuple):
        raise DocumentError("wrong_type", f"column {column!r} holds a {type(value).__name__} instead of messages")
    messages, cut = [], set()
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
        if role == "assistant" and one.get("weight") not in (None, 1):
            said = (
                f"column {column!r}: message {i} has weight {one['weight']!r:.20}, and every assistant turn is learnt; "
            )
            raise DocumentError("weight", said + "end the conversation before it, or take the field away")
        if role == "assistant" and one.get("finish_reason") in CUT_SHORT:
            cut.add(i - 1)
        messages.append(Message(role=role, content=content))
    return Conversation(tuple(messages), frozenset(cut))


def cut_turns(row: Mapping[str, Any], said: Conversation, *, of: str = "") -> set[int]:
    """The assistant turns of a conversation, numbered from 0, that were cut at a length, by any sign.

    Signs: a message's own finish_reason; the column <of>finish_reason, of the last turn; in flags "<of>truncated", of
    the last turn, and "truncated:<turn>", of the answer to this user turn, from 0. of: "chosen_" or "rejected_" in a
    pair. Raises DocumentError: wrong_type.
    """
    flags, cut = _flags(row), said.cut_turns
    if f"{of}truncated" in flags or row.get(f"{of}finish_reason") in CUT_SHORT:
        cut.add(said.roles.count("assistant") - 1)
    return cut if of else cut | _flagged_turns(said.roles, flags)


def _flags(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("flags")
    if value is None:
        return ()
    if not (isinstance(value, list | tuple) and all(isinstance(flag, str) for flag in value)):
        raise DocumentError("wrong_type", f"column 'flags' holds {value!r:.60} instead of a list of text")
    return tuple(value)


def _flagged_turns(roles: Sequence[str], flags: Sequence[str]) -> set[int]:
    """The assistant turns that flags name by their user turns."""
    cut, users = set(), [i for i, role in enumerate(roles) if role == "user"]
    for named in filter(None, map(_CUT_FLAG.fullmatch, flags)):
        turn = int(named[1])
        if turn >= len(users) or roles[users[turn] + 1 : users[turn] + 2] != ["assistant"]:
            raise DocumentError("wrong_type", f"column 'flags': {named[0]!r} names no user turn that has an answer")
        cut.add(roles[: users[turn]].count("assistant"))
    return cut
