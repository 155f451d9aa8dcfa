"""The OpenAI-compatible endpoint as one ASGI application: who may ask, what, how much, and the answer.

GET /health (the process lives), GET /ready (the models do), GET /v1/models, POST /v1/chat/completions.
Everything under /v1 wants a key where the recipe names keys. What answers is behind `Models`, so nothing
here knows Ray.
"""

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.passes import completions
from moaa_ray.data.conversations import digest_of
from moaa_ray.serving import replies
from moaa_ray.serving.chat import ChatRequest, RefusedError, parse_chat
from moaa_ray.serving.cors import cors_headers, preflight_headers
from moaa_ray.serving.http import ClientGoneError, Reply, drop_body, read_body
from moaa_ray.serving.keys import Keys
from moaa_ray.serving.mixture import Models, Patience, TooFewError, propose, stripped
from moaa_ray.serving.offer import Offer
from moaa_ray.settings.checks import choices
from moaa_ray.types import Completion, Failure, Row

_LOG = logging.getLogger(__name__)
_RETRY_AFTER_S = 1
PROPOSERS, MISSING = "x-moaa-proposers", "x-moaa-missing"
"""Headers of the mixture's answers: proposers that answered of those asked; which did not, and why."""
_ROUTES = {"/health": "GET", "/ready": "GET", "/v1/models": "GET", "/v1/chat/completions": "POST"}


class Front:
    """Takes requests, as many at a time as the recipe says."""

    def __init__(self, offer: Offer, models: Models, keys: Keys):
        self._offer = offer
        self._models = models
        self._keys = keys
        self._created = int(time.time())
        self.num_open = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """One HTTP exchange. A client that has gone is cancelled by whoever runs this."""
        allowed = self._offer.config.allow_origins
        headers = cors_headers(_header(scope, b"origin"), allowed, exposed=(PROPOSERS, MISSING, "retry-after"))
        reply = Reply(send, headers=headers, is_head=scope["method"] == "HEAD")
        try:
            await self._route(scope, receive, reply)
        except RefusedError as error:
            await reply.refuse(error, {"retry-after": str(_RETRY_AFTER_S)} if error.status in (429, 503) else {})
        except ClientGoneError:
            return
        except Exception:  # a fault of ours: told to the log in full, to the client not at all
            _LOG.exception("a request has failed")
            await reply.refuse(RefusedError(500, "an error inside the server; its log says more"))

    async def _route(self, scope: Mapping[str, Any], receive: Any, reply: Reply) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        known = "/v1/models" if path.startswith("/v1/models/") else path
        wanted = _ROUTES.get(known)
        if wanted and scope["method"] == "OPTIONS" and self._offer.config.allow_origins:
            await reply.nothing(preflight_headers(_header(scope, b"access-control-request-headers")))
            return
        if known.startswith("/v1/"):
            self._admit(scope)
        if wanted is None:
            raise RefusedError(404, f"{path[:100]}: no such address; there are {', '.join(_ROUTES)}", code="not_found")
        if scope["method"] != wanted and (scope["method"], wanted) != ("HEAD", "GET"):
            raise RefusedError(405, f"{scope['method'][:20]} {known}: not possible; use {wanted}")
        if path == "/health":
            await reply.json(b'{"status":"ok"}')
        elif path == "/ready":
            await self._ready(reply)
        elif path == "/v1/models":
            await reply.json(replies.model_list(self._offer.names, created=self._created))
        elif known == "/v1/models":
            name = path.removeprefix("/v1/models/")
            self._check_name(name)
            await reply.json(replies.model_card(name, created=self._created))
        else:
            await self._chat(receive, reply)

    def _admit(self, scope: Mapping[str, Any]) -> None:
        if not self._keys.admits(_header(scope, b"authorization")):
            raise RefusedError(401, "this server wants a key: Authorization: Bearer KEY", code="invalid_api_key")

    async def _ready(self, reply: Reply) -> None:
        if lack := self._offer.lack_of(await self._models.missing()):
            raise RefusedError(503, f"not ready: {lack}", code="not_ready")
        await reply.json(b'{"status":"ready"}')

    def _check_name(self, name: str) -> None:
        if name not in self._offer.names:
            said = f"model = {name[:100]!r}: no such model here; {choices(name, self._offer.names)}"
            raise RefusedError(404, said, param="model", code="model_not_found")

    async def _chat(self, receive: Any, reply: Reply) -> None:
        limits = self._offer.config
        with self._place() as has_place:
            if not has_place:
                await drop_body(receive)
                said = f"{limits.max_open_requests} requests are open already; ask again in {_RETRY_AFTER_S} s"
                raise RefusedError(429, said, kind="rate_limit_error", code="rate_limit_exceeded")
            try:
                async with asyncio.timeout(limits.request_timeout_s):
                    chat = parse_chat(await read_body(receive, limits.max_body_bytes), limits)
                    self._check_name(chat.model)
                    await self._answer(chat, reply)
            except TimeoutError:
                raise RefusedError(504, f"no answer within {limits.request_timeout_s:g} s", code="timeout") from None

    @contextlib.contextmanager
    def _place(self) -> Iterator[bool]:
        """A place among the open requests, given back at the end; yields whether there was one."""
        has_place = self.num_open < self._offer.config.max_open_requests
        self.num_open += has_place
        try:
            yield has_place
        finally:
            self.num_open -= has_place

    async def _answer(self, chat: ChatRequest, reply: Reply) -> None:
        seed = secrets.randbits(53) if chat.seed is None else chat.seed
        *proposers, last = self._offer.passes_for(chat, seed=seed)
        head = replies.Head(id=f"chatcmpl-{uuid.uuid4().hex}", model=chat.model, created=int(time.time()))
        turn = _Turn(head=head, row=_row_of(chat), last=last, with_usage=chat.with_usage)
        if proposers:
            turn = await self._after_proposals(turn, proposers)
        if chat.is_stream:
            await self._stream(turn, reply)
            return
        answer = next(iter((await self._models.answer(last, turn.row)).values()))
        if isinstance(answer, Failure):
            raise replies.refusal_of(answer, chat.model)
        answer = replace(answer, text=answer.text.strip())
        await reply.json(replies.whole(head, answer, turn.usage(answer)), headers=turn.headers)

    async def _after_proposals(self, turn: "_Turn", proposers: Sequence[MixturePass]) -> "_Turn":
        config = self._offer.config
        patience = Patience(timeout_s=config.proposer_timeout_s, quorum=config.quorum)
        try:
            proposed = await propose((*proposers, turn.last), turn.row, self._models, patience)
        except TooFewError as error:
            status = 400 if error.reasons <= replies.CLIENTS_FAULTS else 503
            raise RefusedError(status, f"{turn.head.model}: {error}", code="too_few_proposals") from None
        headers = {PROPOSERS: f"{proposed.num_asked - len(proposed.missing)}/{proposed.num_asked}"}
        if proposed.missing:
            headers[MISSING] = ", ".join(f"{name} ({reason})" for name, reason in proposed.missing)
        return replace(turn, row=proposed.row, proposers=tuple(proposers), headers=headers)

    async def _stream(self, turn: "_Turn", reply: Reply) -> None:
        """Events as the pieces come. The head waits for the first, so that a failure before it has its own status."""
        head, with_usage = turn.head, turn.with_usage
        async with aclosing(stripped(self._models.stream(turn.last, turn.row))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Failure):
                    raise replies.refusal_of(piece, head.model)
                data = b""
                if not reply.has_begun:
                    await reply.begin_events(turn.headers)
                    data = replies.first_chunk(head, with_usage=with_usage)
                if isinstance(piece, Completion):
                    data += replies.last_chunks(head, piece, turn.usage(piece), with_usage=with_usage)
                    await reply.events(data, is_last=True)
                    return
                await reply.events(data + replies.text_chunk(head, piece, with_usage=with_usage))
        raise RefusedError(503, f"{head.model}: the answer broke off")


def _header(scope: Mapping[str, Any], wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == wanted), "")


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """What is known of a request when its last pass is asked: the aggregator, or the one model itself."""

    head: replies.Head
    row: Row
    last: MixturePass
    with_usage: bool
    proposers: tuple[MixturePass, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def usage(self, completion: Completion) -> dict[str, Any]:
        """Tokens of this completion and of all proposals, shown or not."""
        by_model: dict[str, list[Completion]] = {}
        for p in self.proposers:
            by_model.setdefault(p.engine, []).extend(completions(self.row, p.name))
        by_model.setdefault(self.last.engine, []).append(completion)
        return replies.usage_of(by_model)


def _row_of(chat: ChatRequest) -> Row:
    """The row that the same conversation is as a prompt without an id of its own, so that seeds are the same."""
    digest = digest_of(*(part for message in chat.messages for part in (message["role"], message["content"])))
    return Row(id=digest.hex()[:20], source="serve", messages=chat.messages)
