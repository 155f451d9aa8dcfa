"""The words every part of moaa_ray shares: messages, requests, answers, rows.

All of them are immutable values. A row keeps one id for life: one row into a pass, one row out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict


class Message(TypedDict):
    """One message of a conversation, in the Hugging Face conversational format."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one completion is drawn. At most one of json_schema, regex and choice constrains the text."""

    max_tokens: int
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    # Clients of `moaa serve` alone set these two; a Sampling's text, by which evaluations know rows, leaves them out.
    presence_penalty: float = field(default=0.0, repr=False)
    frequency_penalty: float = field(default=0.0, repr=False)
    stop: tuple[str, ...] = ()
    json_schema: str = ""  # JSON text
    regex: str = ""
    choice: tuple[str, ...] = ()
    logprobs: int = 0
    """So many of the likeliest first tokens come with the completion, each with its logprob; 0: none, at most 20."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion asked of an engine. The id is unique within a run; the seed alone decides the draw."""

    id: str
    row_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    flags: tuple[str, ...] = ()  # what the pass did to fit the prompt, e.g. "proposals_cut"


CUT_SHORT = ("length", "content_filter")
"""Finish reasons of a text that stops before its end: at max_tokens, or by an endpoint's filter."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer. finish_reason is the engine's own word: "stop", "length", ..."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    flags: tuple[str, ...] = ()  # what was done to the request, e.g. "role_tokens_broken"
    cached_tokens: int = 0  # of prompt_tokens, those that the engine had read before; counted, not kept with the row
    first_logprobs: tuple[tuple[str, float], ...] = ()
    """(token, logprob in nats) of what could have come first, likeliest first; empty where it was not asked for, or
    where the engine cannot say."""
    model: str = ""  # who gave it, and its revision, noted where a row may outlive the recipe that named them
    revision: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a request has no completion. reason is a short stable code that is counted; detail is for people."""

    reason: str
    detail: str = ""
    retryable: bool = True


Answer = Completion | Failure

Status = Literal["open", "ok", "failed", "quarantined", "dropped"]
"""open: still on its way. ok, quarantined and dropped are final; a failed row is asked again by the next run."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What one model answered for one turn; the published form of an answer."""

    turn: int
    layer: int
    proposer: str
    model: str
    revision: str
    completion: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    used: bool
    error: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt's record on its way through the passes.

    messages ends with the user turn being answered; earlier assistant turns in it are synthesised ones.
    later holds the user turns still to come, answers what each pass answered for the present turn.
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    turn: int = 0
    later: tuple[str, ...] = ()
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    status: Status = "open"
    reason: str = ""
    flags: tuple[str, ...] = ()
