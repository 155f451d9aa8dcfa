"""One question to a judge behind an endpoint, before hours of work: whether it gives the logprobs that it is read by.

Only what the endpoint itself says counts. One that does not answer may be started later, and a key that this process
does not have the workers may have; both come to light when the judge is asked.
"""

import asyncio
import os

from moaa_ray.engines.base import EngineStartError, RequestError
from moaa_ray.engines.openai import OpenaiEngine
from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.alpaca_eval import label_messages
from moaa_ray.evaluation.answering import STAGE
from moaa_ray.evaluation.protocols import AlpacaEvalProtocol, protocol_of
from moaa_ray.evaluation.summary import place_of
from moaa_ray.loading import LoadedPreference
from moaa_ray.run_record import made_with
from moaa_ray.settings.models import OpenaiModel
from moaa_ray.types import Completion, Request, Sampling

_TIMEOUT_S = 20.0
_WAY_OUT = "take another judge, or set evaluate.alpaca_eval.preference=verdict"


def probe_judge(loaded: LoadedPreference) -> None:
    """Ask AlpacaEval's judge for one token, where its logprobs will be needed and it has judged nothing yet.

    Raises ConfigError where it answers without them, refuses to give them, or does not know its model or key.
    """
    section = loaded.recipe.evaluate.alpaca_eval
    if section is None or made_with(place_of(loaded.run_dir, f"judges/{section.judge}"), STAGE):
        return
    model = loaded.recipe.models[section.judge]
    protocol = protocol_of("alpaca_eval", loaded.recipe.evaluate, run_seed=loaded.recipe.seed)
    is_read_so = isinstance(protocol, AlpacaEvalProtocol) and protocol.by_logprobs
    if not is_read_so or not isinstance(model, OpenaiModel) or _has_no_key_here(model):
        return
    once = model.model_copy(update={"max_attempts": 1, "request_timeout_s": _TIMEOUT_S})
    field = f"evaluate.alpaca_eval.judge = {section.judge!r}"
    try:
        answer = asyncio.run(_ask(once, protocol.sampling))
    except EngineStartError as error:
        raise ConfigError(f"{field}: {error}") from error
    except (RequestError, ConnectionError) as error:
        if isinstance(error, RequestError) and error.reason == "http_4xx":
            raise ConfigError(f"{field}: asked for the logprobs of one token, it says {error}; {_WAY_OUT}") from error
        return
    if not answer.first_logprobs:
        raise ConfigError(
            f"{field}: its endpoint answers without logprobs, by which preference = 'logprobs' reads it; {_WAY_OUT}"
        )


def _has_no_key_here(model: OpenaiModel) -> bool:
    return model.api_key is not None and not os.environ.get(model.api_key[2:-1], "").strip()


async def _ask(model: OpenaiModel, sampling: Sampling) -> Completion:
    engine = OpenaiEngine(model, start_window_s=0.0)
    await engine.start()
    try:
        messages = label_messages("Say yes.", ("Yes.", "No."), fence="probe")
        return await engine.generate(
            Request(id="probe", row_id="probe", messages=messages, sampling=sampling, seed=0)
        )  # fmt: skip
    finally:
        await engine.stop()
