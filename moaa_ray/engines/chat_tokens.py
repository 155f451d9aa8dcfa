"""Conversation -> token ids with the model's own chat template, in which row text stays text.

A prompt, a proposal or a dataset's system text may hold the template's own role tokens
("<|im_end|>", "<start_of_turn>", ...). Tokenised as part of the rendered prompt they would end a turn
and start another. Here every such token that comes from a message's content is encoded as the plain
characters it is made of; only the template's own stay control tokens. All other tokens are exactly
those of the ordinary rendering.
"""

import re
from collections.abc import Sequence

from moaa_ray.core.templates import fold_system
from moaa_ray.engines.base import EngineStartError, RequestError
from moaa_ray.types import Message

PINNED_DATE = "26 Jul 2024"
"""What templates that print today's date are told, so that a prompt is the same tomorrow."""


class ChatTokenizer:
    """Encodes conversations for one model. Built from a `transformers` fast tokenizer."""

    def __init__(self, tokenizer, *, chat_template: str | None = None):
        """Raises EngineStartError for a tokenizer that has no chat template or is not a fast one."""
        self._tokenizer = tokenizer
        self._template = chat_template or _template_of(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise EngineStartError(
                f"the tokenizer of {tokenizer.name_or_path} has no fast version (tokenizer.json), which keeping "
                "role tokens in row text harmless needs; add tokenizer.json to the model folder"
            )
        self._backend = tokenizer.backend_tokenizer
        self._control = _control_tokens(tokenizer, self._template)
        self._control_text = {token: text for text, token in self._control.items()}
        self._looks_forged = _any_of(self._control)
        self._pieces: dict[tuple[str, ...], list[str]] = {}
        self.has_system_role = self._probe_system_role()
        self._trims = self._probe_trims()

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Token ids with the generation prompt, and whether control tokens in row text were made plain.

        Raises RequestError("template") when the template refuses the conversation.
        """
        if not self.has_system_role:
            messages = fold_system(messages)
        if not any(self._looks_forged(message["content"]) for message in messages):
            return self._backend.encode(self._render(messages), add_special_tokens=False).ids, False
        text, spans = self._assembled(messages)
        encoded = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            forged = self._forged_text(token, text, start, end, spans)
            ids.extend(self._plain(forged) if forged else [token])
        return ids, True

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `encode` gives."""
        return len(self.encode(messages)[0])

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                date_string=PINNED_DATE,
            )
        except Exception as error:  # templates raise whatever their author chose, through jinja2
            raise RequestError("template", f"the chat template refuses the conversation: {error}", retryable=False)  # noqa: B904

    def _assembled(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered prompt built from the template's own pieces, and the spans of the contents in it."""
        pieces = self._pieces_for(tuple(message["role"] for message in messages))
        text, spans = pieces[0], []
        for message, piece in zip(messages, pieces[1:], strict=True):
            content = message["content"].strip() if self._trims else message["content"]
            spans.append((len(text), len(text) + len(content)))
            text += content + piece
        return text, spans

    def _pieces_for(self, roles: tuple[str, ...]) -> list[str]:
        if roles not in self._pieces:
            marks = [f"@@c7e1b9f2-{i}@@" for i in range(len(roles))]
            rendered = self._render([Message(role=r, content=m) for r, m in zip(roles, marks, strict=True)])
            pieces = re.split("|".join(map(re.escape, marks)), rendered)
            if len(pieces) != len(roles) + 1 or re.findall(r"@@c7e1b9f2-\d+@@", rendered) != marks:
                raise RequestError(
                    "template", "the chat template drops or repeats a message's content", retryable=False
                )
            self._pieces[roles] = pieces
        return self._pieces[roles]

    def _forged_text(self, token: int, text: str, start: int, end: int, spans: list[tuple[int, int]]) -> str:
        """The characters of a control token that overlaps row text; empty for every other token."""
        written = self._control_text.get(token)
        if written is None:
            return ""
        at = text.find(written, start, end)
        core = (at, at + len(written)) if at >= 0 else (start, end)
        forged = any(core[0] < stop and begin < core[1] for begin, stop in spans)
        return text[start:end] if forged else ""

    def _plain(self, text: str) -> list[int]:
        """Ids of the characters with no control token among them: encoded in parts that are none."""
        for cut in range(1, len(text)):
            ids = [
                token
                for part in (text[:cut], text[cut:])
                for token in self._backend.encode(part, add_special_tokens=False).ids
            ]
            if not any(token in self._control_text for token in ids):
                return ids
        return []

    def _probe_system_role(self) -> bool:
        try:
            self._pieces_for(("system", "user"))
        except RequestError:
            return False
        return True

    def _probe_trims(self) -> bool:
        return "\n\n @@x@@" not in self._render([Message(role="user", content="\n\n @@x@@ \n\n")])


def _template_of(tokenizer) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise EngineStartError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "use the instruction-tuned version of the model, or set `chat_template` to a file with one"
        )
    return template


def _control_tokens(tokenizer, template: str) -> dict[str, int]:
    """Text -> id of the tokens that steer a conversation: special ones, and added ones the template writes."""
    return {
        token.content: i
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in template)
    }


def _any_of(tokens: dict[str, int]):
    if not tokens:
        return lambda text: False
    pattern = re.compile("|".join(re.escape(text) for text in sorted(tokens, key=len, reverse=True)))
    return lambda text: pattern.search(text) is not None
