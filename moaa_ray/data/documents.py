"""A conversation as a student trains on it: tokens, and for each whether predicting it is part of the loss.

The whole text is tokenised once, by the code that makes prompts for engines, so a student is trained on
the very tokens that it is asked with. What counts is each assistant turn's completion with the token that
ends the turn, found by the characters that tokens stand for. Left out: cutting to a length (units.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from moaa_ray.core.templates import fold_system
from moaa_ray.engines.base import EngineStartError, RequestError
from moaa_ray.engines.chat_tokens import ChatTokenizer
from moaa_ray.engines.control_tokens import template_of
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.types import Message

_OTHER_TEMPLATE = (
    "set `chat_template` to a file with one that only ever adds to what it wrote, such as those of jobs/templates"
)


class DocumentError(DataError):
    """A row that cannot be trained on. rule is a short stable word that is counted; detail is for people."""

    def __init__(self, rule: str, detail: str):
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Document:
    """One conversation as tokens. `counts` says for each token whether predicting it is part of the loss."""

    tokens: np.ndarray  # int32 [n]
    counts: np.ndarray  # bool [n]; the first token is never predicted, so counts[0] has no effect

    @property
    def num_targets(self) -> int:
        """Tokens whose prediction counts."""
        return int(self.counts[1:].sum())


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Where an assistant turn stands in the text, in characters."""

    start: int
    """After the generation prompt."""
    content_end: int
    end: int
    """After the token that ends the turn."""


class DocumentTokenizer:
    """Makes documents with one model's tokenizer and chat template.

    chat_template: its text, of a tokenizer's several the default one; end_token: the id that ends an assistant turn.
    """

    def __init__(self, tokenizer, *, chat_template: str | None = None):
        """Raises ConfigError for a tokenizer or template that cannot be used, or that does not end assistant turns.

        Args: tokenizer is a `transformers` fast tokenizer; chat_template (Jinja text) replaces its own.
        """
        try:
            self._chat = ChatTokenizer(tokenizer, chat_template=chat_template)
            self.chat_template: str = chat_template or template_of(tokenizer)
            tail, end = self._chat.after_last(("user", "assistant"))
        except EngineStartError as error:
            raise ConfigError(str(error)) from error
        except RequestError as error:
            raise ConfigError(
                f"the chat template of {tokenizer.name_or_path} cannot render a user turn and an assistant turn "
                f"({error.detail}); set `chat_template` to a file with one that can"
            ) from error
        if end == 0:
            raise ConfigError(
                f"the chat template of {tokenizer.name_or_path} writes no control token after an assistant turn, so a "
                "student would never learn to stop; set `chat_template` to a file with one that ends turns"
            )
        self.end_token: int = tokenizer.encode(tail[:end], add_special_tokens=False)[-1]

    def conversation(
        self, messages: Sequence[Message], *, all_tokens: bool = False, cut_turns: Collection[int] = frozenset()
    ) -> Document:
        """The conversation up to its last assistant turn; every assistant turn counts, or every token but the first.

        Assistant turns that the conversation begins with do not: nothing asks for them.
        cut_turns numbers assistant turns, from 0, whose completion stopped at a length: the token that ends such a
        turn does not count, and when it is the last turn the document ends with the completion. Raises DocumentError:
        no_assistant, no_user_turn (it only begins with them), empty_prompt (all user turns are blank), empty_completion
        (a blank one), template (refused), not_incremental (the template writes something else before a completion than
        it writes when it asks for one).
        """
        return self._document(messages, num_given=0, all_tokens=all_tokens, cut_turns=cut_turns)

    def completion(
        self, prompt: Sequence[Message], completion: Sequence[Message], *, cut_turns: Collection[int] = frozenset()
    ) -> Document:
        """Prompt and completion as one document, in which only assistant turns of the completion count.

        cut_turns numbers the completion's assistant turns. Raises as `conversation` does.
        """
        num_given = sum(message["role"] == "assistant" for message in prompt)
        cut_turns = {num_given + turn for turn in cut_turns}
        return self._document((*prompt, *completion), num_given=num_given, all_tokens=False, cut_turns=cut_turns)

    def _document(
        self, messages: Sequence[Message], *, num_given: int, all_tokens: bool, cut_turns: Collection[int]
    ) -> Document:
        """num_given assistant turns at the start do not count."""
        roles = [message["role"] for message in messages]
        if roles.count("assistant") <= num_given:
            raise DocumentError("no_assistant", f"the roles are {roles}")
        messages = messages[: len(roles) - roles[::-1].index("assistant")]
        asked = [message["content"] for message in messages if message["role"] == "user"]
        if asked and not "".join(asked).strip():
            raise DocumentError("empty_prompt", "no user turn holds any text")
        if not self._chat.has_system_role:
            messages = fold_system(messages)
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        num_given = max(num_given, sum(place == i for i, place in enumerate(places)))
        if len(places) == num_given:
            raise DocumentError("no_user_turn", f"the roles are {roles}: nothing asks for what the assistant says")
        try:
            encoded = self._chat.trace(messages, is_prompt=False)
            turns = {i: self._turn(messages, places[i], encoded.text) for i in range(num_given, len(places))}
            left_out = self._chat.left_out([message["role"] for message in messages])
        except RequestError as error:
            raise DocumentError(error.reason, error.detail) from error
        if left_out:
            said = f"message {left_out[0] + 1} of {len(messages)} ({messages[left_out[0]]['role']})"
            raise DocumentError("template", f"the chat template leaves out {said}, which later turns may answer")
        starts, ends = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2).T
        counts = np.full(len(starts), all_tokens)
        for i, turn in turns.items():
            counts |= (starts >= turn.start) & (starts < turn.end)
            if i in cut_turns:
                counts &= (ends <= turn.content_end) | (starts >= turn.end)
        num_tokens = len(starts)
        if len(places) - 1 in cut_turns:
            num_tokens = int(np.argmax(ends > turns[len(places) - 1].content_end))
        counts[0] = False
        document = Document(tokens=np.array(encoded.ids[:num_tokens], dtype=np.int32), counts=counts[:num_tokens])
        if document.num_targets == 0:
            raise DocumentError("empty_completion", "no token of a completion can be predicted")
        return document

    def _turn(self, messages: Sequence[Message], place: int, text: str) -> _Turn:
        """The assistant turn messages[place] in the text of the whole conversation."""
        number = f"message {place + 1} of {len(messages)}"
        if not messages[place]["content"].strip():
            raise DocumentError("empty_completion", f"{number} is an assistant turn without text")
        is_last = place == len(messages) - 1
        prompt = self._chat.render(messages[:place], is_prompt=True)
        so_far = text if is_last else self._chat.render(messages[: place + 1], is_prompt=False)
        tail, ended = self._chat.after_last([message["role"] for message in messages[: place + 1]])
        turn = _Turn(start=len(prompt), content_end=len(so_far) - len(tail), end=len(so_far) - len(tail) + ended)
        if not so_far.endswith(tail) or ended == 0:
            raise DocumentError("template", f"the chat template does not end {number} as it ends others of its kind")
        if not (so_far.startswith(prompt) and text.startswith(so_far)):
            raise DocumentError(
                "not_incremental",
                f"the chat template writes {number}, or what stands before it, in another way than it asks for it; "
                f"{_OTHER_TEMPLATE}",
            )
        if not text[turn.start : turn.content_end].strip():
            raise DocumentError("empty_completion", f"the chat template leaves nothing of {number}")
        return turn
