"""Conversation -> token ids with the model's own chat template, in which row text stays text.

A prompt, a proposal or a dataset's system text may hold the template's own role tokens
("<|im_end|>", "<start_of_turn>", ...), or what the tokenizer's normaliser turns into one. Tokenised as
part of the rendered prompt they would end a turn and start another. So every prompt's control tokens
are compared with those that the template writes around other texts of the same roles; where row text
added one, it is encoded as the plain characters it is made of. All other tokens are exactly those of
the ordinary rendering, also with templates that trim, move or shorten what they are given. Prompts of
engines and documents of students come from the same code, so a student is asked as it was trained.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from moaa_ray.core.templates import fold_system
from moaa_ray.engines.base import EngineStartError, RequestError
from moaa_ray.engines.control_tokens import any_of, control_tokens, template_of, without_trimming
from moaa_ray.types import Message

PINNED_DATE = date(2024, 7, 26)
"""What templates that print today's date are told, so that a prompt is the same tomorrow."""
_ILLEGIBLE = "\ufffd"
_TAIL_TOKENS = 64
_Tokens = list[tuple[int, int, int]]  # id, and where in the text it begins and ends


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation's text and its tokens, each with the part of the text, [begin, end), that it stands for."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    was_forged: bool
    """Whether control tokens in row text were made plain."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What the template writes around the contents of one sequence of roles."""

    text: str
    """The prompt with a mark in place of every content."""
    spans: list[tuple[int, int]]
    """Where the marks stand in it."""
    order: list[int]
    """Which message each mark stands for."""
    control: list[int]
    """The control tokens of the whole."""
    is_prompt: bool
    """Whether the whole ends with the generation prompt."""

    @property
    def pieces(self) -> list[str]:
        """The template's own text: before the first mark, between two, after the last."""
        starts, ends = [0, *(end for _, end in self.spans)], [*(start for start, _ in self.spans), len(self.text)]
        return [self.text[start:end] for start, end in zip(starts, ends, strict=True)]


class ChatTokenizer:
    """Encodes conversations for one model. Built from a `transformers` fast tokenizer."""

    def __init__(self, tokenizer, *, chat_template: str | None = None):
        """Raises EngineStartError for a tokenizer that is not a fast one, or a template that cannot be used."""
        self._tokenizer = tokenizer
        self._template = chat_template or template_of(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise EngineStartError(
                f"the tokenizer of {tokenizer.name_or_path} has no fast version (tokenizer.json), which keeping "
                "role tokens in row text harmless needs; add tokenizer.json to the model folder"
            )
        self._backend = without_trimming(tokenizer.backend_tokenizer)
        self._control = control_tokens(tokenizer, self._template)
        self._looks_forged = any_of(self._control.values())
        self._frames: dict[tuple[tuple[str, ...], bool], _Frame] = {}
        self._check_lone_user()
        self.has_system_role = self._probe_system_role()

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Token ids with the generation prompt, and whether control tokens in row text were made plain.

        Raises RequestError("template") when the template refuses the conversation.
        """
        encoded = self.trace(messages, is_prompt=True)
        return encoded.ids, encoded.was_forged

    def trace(self, messages: Sequence[Message], *, is_prompt: bool) -> Encoded:
        """Text and tokens of the conversation, ending with the generation prompt or without one.

        Raises RequestError("template") when the template refuses the conversation.
        """
        if not self.has_system_role:
            messages = fold_system(messages)
        text = self.render(messages, is_prompt=is_prompt)
        found = self._backend.encode(text, add_special_tokens=False)
        frame = self._frame_of(tuple(message["role"] for message in messages), is_prompt=is_prompt)
        is_plain = not any(self._looks_forged(message["content"]) for message in messages)
        if is_plain and self._control_in(found.ids) == frame.control:
            return Encoded(text=text, ids=found.ids, offsets=found.offsets, was_forged=False)
        return self._encode_in(frame, messages)

    def ends_illegibly(self, ids: Sequence[int]) -> bool:
        """Whether the text of these tokens ends in U+FFFD once its control tokens are left out."""
        return self._backend.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=True).endswith(_ILLEGIBLE)

    def after_last(self, roles: Sequence[str]) -> tuple[str, int]:
        """What the template writes after the last content of such a conversation, and where in it the first
        control token ends; 0 when it has none. Raises RequestError("template") when it drops that content.
        """
        frame = self._frame_of(tuple(roles), is_prompt=False)
        if frame.order[-1:] != [len(roles) - 1]:
            raise RequestError("template", "the chat template drops or moves the last content", retryable=False)
        tail = frame.pieces[-1]
        for token, start, end in self._encode_text(tail, [])[0]:
            if token in self._control:
                at = tail.find(self._control[token], start, end)
                return tail, at + len(self._control[token]) if at >= 0 else end
        return tail, 0

    def left_out(self, roles: Sequence[str]) -> list[int]:
        """The messages of such a conversation that the template does not write, by number from 0."""
        return sorted({*range(len(roles))} - {*self._frame_of(tuple(roles), is_prompt=False).order})

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `encode` gives."""
        return len(self.encode(messages)[0])

    def render(self, messages: Sequence[Message], *, is_prompt: bool) -> str:
        """The template's text as it is, role tokens of row text among its own. Raises RequestError("template")."""
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=is_prompt,
                date_string=PINNED_DATE.strftime("%d %b %Y"),
                strftime_now=PINNED_DATE.strftime,
            )
        except Exception as error:  # templates raise whatever their author chose, through jinja2
            raise RequestError("template", f"the chat template refuses the conversation: {error}", retryable=False)  # noqa: B904

    def _frame_of(self, roles: tuple[str, ...], *, is_prompt: bool) -> _Frame:
        if (roles, is_prompt) not in self._frames:
            text = self.render(_neutral(roles), is_prompt=is_prompt)
            marks = list(re.finditer(r"@@c7e1b9f2-(\d+)@@", text))
            self._frames[roles, is_prompt] = _Frame(
                text=text,
                spans=[mark.span() for mark in marks],
                order=[int(mark[1]) for mark in marks],
                control=self._control_in(self._backend.encode(text, add_special_tokens=False).ids),
                is_prompt=is_prompt,
            )
        return self._frames[roles, is_prompt]

    def _encode_in(self, frame: _Frame, messages: Sequence[Message]) -> Encoded:
        """A conversation whose texts hold control tokens."""
        if sorted(frame.order) != list(range(len(messages))):
            raise RequestError("template", "the chat template drops or repeats a message's content", retryable=False)
        first, *pieces = frame.pieces
        text, spans = first, []
        for content, piece in zip(self._shaped(frame, messages), pieces, strict=True):
            spans.append((len(text), len(text) + len(content)))
            text += content + piece
        tokens, was_forged = self._encode_text(text, spans)
        if self._control_in(token for token, _, _ in tokens) != frame.control:
            # Row text has joined with a piece of the template; encoded one by one, they cannot.
            tokens, was_forged = self._encode_text(first, [])[0], True
            for (start, end), piece in zip(spans, pieces, strict=True):
                tokens += self._encode_text(text[start:end], [(0, end - start)], at=start)[0]
                tokens += self._encode_text(piece, [], at=end)[0]
        if self._control_in(token for token, _, _ in tokens) != frame.control:
            raise RequestError("template", "row text cannot be told from the chat template's tokens", retryable=False)
        offsets = [(start, end) for _, start, end in tokens]
        return Encoded(text=text, ids=[token for token, _, _ in tokens], offsets=offsets, was_forged=was_forged)

    def _shaped(self, frame: _Frame, messages: Sequence[Message]) -> list[str]:
        """What the template makes of each content (trimmed, its thoughts left out, ...), in the frame's order.

        Each is rendered alone among neutral ones: what then stands between the template's own pieces came
        from it. A content that changes the pieces themselves is taken as it is.
        """
        shaped = []
        for (start, end), i in zip(frame.spans, frame.order, strict=True):
            around = _neutral([message["role"] for message in messages])
            around[i] = messages[i]
            text, before, after = self.render(around, is_prompt=frame.is_prompt), frame.text[:start], frame.text[end:]
            fits = len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
            shaped.append(text[start : len(text) - len(after)] if fits else messages[i]["content"])
        return shaped

    def _encode_text(self, text: str, spans: list[tuple[int, int]], *, at: int = 0) -> tuple[_Tokens, bool]:
        """The tokens of a text that begins at `at`, control tokens that overlap the spans made plain, and
        whether there were any.
        """
        encoded = self._backend.encode(text, add_special_tokens=False)
        tokens: _Tokens = []
        was_forged = False
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            is_forged = token in self._control and self._is_forged(token, text, start, end, spans)
            tokens += self._plain(text[start:end], at + start) if is_forged else [(token, at + start, at + end)]
            was_forged |= is_forged
        return tokens, was_forged

    def _is_forged(self, token: int, text: str, start: int, end: int, spans: list[tuple[int, int]]) -> bool:
        """Whether a control token overlaps row text; blanks that it takes in on its sides do not count."""
        at = text.find(self._control[token], start, end)
        core = (at, at + len(self._control[token])) if at >= 0 else (start, end)
        return any(core[0] < stop and begin < core[1] for begin, stop in spans)

    def _plain(self, text: str, at: int) -> _Tokens:
        """Tokens of the characters with no control token among them: in halves until there is none.

        A single character that is a control token is written as U+FFFD.
        """
        encoded = self._backend.encode(text, add_special_tokens=False)
        if not self._control_in(encoded.ids):
            places = zip(encoded.ids, encoded.offsets, strict=True)
            return [(token, at + start, at + end) for token, (start, end) in places]
        if len(text) < 2:
            ids = self._backend.encode(_ILLEGIBLE, add_special_tokens=False).ids
            return [(token, at, at + 1) for token in ids if token not in self._control]
        half = len(text) // 2
        return self._plain(text[:half], at) + self._plain(text[half:], at + half)

    def _control_in(self, ids: Iterable[int]) -> list[int]:
        return [token for token in ids if token in self._control]

    def _check_lone_user(self) -> None:
        try:
            self.render([Message(role="user", content="Hi")], is_prompt=True)
        except RequestError as error:
            raise EngineStartError(
                f"the chat template of {self._tokenizer.name_or_path} cannot render a single user turn, with which "
                f"every conversation starts ({error.detail}); set `chat_template` to a file with one that can"
            ) from error

    def _probe_system_role(self) -> bool:
        try:
            return sorted(self._frame_of(("system", "user"), is_prompt=True).order) == [0, 1]
        except RequestError:
            return False


def _neutral(roles: Sequence[str]) -> list[Message]:
    """A conversation of these roles whose contents mean nothing to any template."""
    return [Message(role=role, content=f"@@c7e1b9f2-{i}@@") for i, role in enumerate(roles)]
