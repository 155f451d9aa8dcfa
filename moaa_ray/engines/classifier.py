"""A reward model as a judge: conversations that end with a candidate go in, the score of each comes out as text.

Here conversations become token ids and batches; the forward pass stands in reward_model.py.
"""

import asyncio
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.chat_tokens import ChatTokenizer
from moaa_ray.engines.reward_model import RewardModel, load_reward_model
from moaa_ray.engines.rule import split_candidate
from moaa_ray.engines.weights import local_weights
from moaa_ray.settings.models import ClassifierModel
from moaa_ray.types import Completion, Message, Request


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A conversation that waits for its score."""

    ids: list[int]
    score: "asyncio.Future[float | None]"  # None: not even alone does it fit into the GPU's memory


class ClassifierEngine:
    """One reward model. See base.Engine for the contract; the completion is repr(score), sampling does not matter.

    Concurrent `generate` calls share forward passes: while one batch is computed, in a thread, the next
    ones gather. All that wait are sorted by length, so that little of a batch is padding.
    """

    def __init__(self, config: ClassifierModel, *, on_gpu: bool):
        self._config = config
        self._on_gpu = on_gpu
        self._batch_tokens = config.batch_tokens or (16_384 if on_gpu else 2_048)
        self._chat: ChatTokenizer | None = None
        self._model: RewardModel | None = None
        self._waiting: list[_Open] = []
        self._in_hand: list[_Open] = []
        self._batching: asyncio.Task[None] | None = None
        self._dead_because = "it was never started"
        self.window = 0
        self.max_attempts = config.max_attempts

    async def start(self) -> None:
        await asyncio.to_thread(self._start)
        self._dead_because = ""

    def _start(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        folder = local_weights(self._config.model)
        tokenizer = _load_tokenizer(self._config, folder)
        self._chat = ChatTokenizer(tokenizer, chat_template=_template(self._config))
        self._model = load_reward_model(self._config, folder, on_gpu=self._on_gpu)
        self.window = _window(self._config, self._model.max_positions, tokenizer.model_max_length)

    async def generate(self, request: Request) -> Completion:
        if self._dead_because:
            raise EngineDeadError(self._dead_because)
        assert self._chat is not None
        split_candidate(request.messages)
        encoded = self._chat.trace(request.messages, is_prompt=False)
        self._check(encoded.ids)
        waiting = _Open(ids=encoded.ids, score=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._batching is None or self._batching.done():
            self._batching = asyncio.create_task(self._answer_waiting())
        score = await waiting.score
        if score is None:
            detail = f"no GPU memory for a conversation of {len(encoded.ids)} tokens; lower context_window below that"
            raise RequestError("out_of_memory", detail, retryable=False)
        if not math.isfinite(score):
            detail = f"the model gave {score}, which cannot be compared; is its dtype {self._config.dtype} too narrow?"
            raise RequestError("not_finite", detail, retryable=False)
        return Completion(
            text=repr(score),
            finish_reason="stop",
            prompt_tokens=len(encoded.ids),
            completion_tokens=0,
            flags=("role_tokens_plain",) if encoded.was_forged else (),
        )

    def _check(self, ids: Sequence[int]) -> None:
        assert self._model is not None
        if self.window and len(ids) > self.window:
            detail = f"conversation of {len(ids)} tokens, window of {self.window}"
            raise RequestError("context_length", detail, retryable=False)
        if max(ids, default=0) >= self._model.vocab_size:
            detail = f"token {max(ids)} is not among the model's {self._model.vocab_size}: it is another tokenizer's"
            raise RequestError("bad_request", detail, retryable=False)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation to be scored; no generation prefix stands behind a candidate."""
        assert self._chat is not None
        return len(self._chat.trace(messages, is_prompt=False).ids)

    async def stop(self) -> None:
        self._die("it was stopped")
        if self._batching is not None:
            self._batching.cancel()
        self._model = None

    def _die(self, why: str) -> None:
        self._dead_because = why
        lost, self._waiting, self._in_hand = [*self._in_hand, *self._waiting], [], []
        for each in lost:
            if not each.score.done():
                each.score.set_exception(EngineDeadError(why))

    async def _answer_waiting(self) -> None:
        """Rounds of batches until nothing waits; who comes during a round is in the next one, so none starves."""
        while self._waiting:
            self._in_hand, self._waiting = self._waiting, []
            hand, lengths = self._in_hand, [len(each.ids) for each in self._in_hand]
            for batch in batches(lengths, max_tokens=self._batch_tokens, max_rows=self._config.concurrency):
                await self._answer([hand[i] for i in batch if not hand[i].score.done()])

    async def _answer(self, batch: list[_Open]) -> None:
        model = self._model
        if not batch or model is None:
            return
        try:
            scores = await asyncio.to_thread(model.scores, [each.ids for each in batch])
        except Exception as error:  # torch and the model's code raise anything, and no later answer could be trusted
            self._die(f"the forward pass failed: {type(error).__name__}: {_first_lines(error)}")
            return
        for each, score in zip(batch, scores, strict=True):
            if not each.score.done():  # its caller may have gone meanwhile
                each.score.set_result(score)


def batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Positions, shortest first, in batches that hold at most max_tokens with padding, unless one alone is longer.

    Example: lengths 4, 1, 2 and max_tokens 4: [1, 2] takes 2 x 2 tokens, with the first it would be 3 x 4.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[i] > max_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _window(config: ClassifierModel, max_positions: int, max_length: float) -> int:
    """Tokens of a conversation: the recipe's word, else what model and tokenizer allow; 0 when neither says."""
    if config.context_window and max_positions and config.context_window > max_positions:
        raise EngineStartError(
            f"context_window = {config.context_window}: {config.model} has positions for {max_positions} tokens "
            "(max_position_embeddings in its config.json); lower it"
        )
    known = [int(limit) for limit in (max_positions, max_length) if 0 < limit < 2**40]
    return config.context_window or min(known, default=0)


def _load_tokenizer(config: ClassifierModel, folder: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, revision=config.revision or None, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EngineStartError(
            f"cannot load the tokenizer of {config.model}: {_first_lines(error)}; check the name, the revision, and "
            "that the workers can read the folder or reach the hub"
        ) from error


def _template(config: ClassifierModel) -> str | None:
    try:
        return Path(config.chat_template).read_text(encoding="utf-8") if config.chat_template else None
    except (OSError, ValueError) as error:
        raise EngineStartError(f"chat_template = {config.chat_template}: {_first_lines(error)}; correct it") from error


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
