"""vLLM's own engine inside this process, on a tiny model; one start serves all checks."""

import asyncio
import os
from dataclasses import replace
from unittest import mock

import pytest

from moaa_ray.demo.tiny import make_tiny_model
from moaa_ray.engines.base import EngineStartError, RequestError
from moaa_ray.engines.build import build_engine
from moaa_ray.engines.vllm import VllmEngine
from moaa_ray.settings.models import VllmModel
from tests.engines.contract import ask, check_contract

pytestmark = pytest.mark.slow

_WINDOW = 512
_REFUSED = {"json_schema": "{", "stop": ("",), "regex": "(", "logprobs": 10_000}


class AlsoRefusing(VllmEngine):
    """Is asked, before the contract is checked, for what vLLM refuses."""

    async def start(self):
        await super().start()
        for name, value in _REFUSED.items():
            request = ask(f"Refuse {name}.")
            request = replace(request, sampling=replace(request.sampling, **{name: value}))
            with pytest.raises(RequestError, match=r"^bad_request: ..") as raised:
                await self.generate(request)
            assert raised.value.retryable is False
            with pytest.raises(RequestError, match=r"^bad_request: .."):
                await anext(aiter(self.stream(request)))


@pytest.fixture
def config(tmp_path) -> VllmModel:
    model = make_tiny_model(tmp_path / "tiny", seed=1, window=_WINDOW)
    return VllmModel(engine="vllm", model=str(model), concurrency=16)


@mock.patch.dict(os.environ)
def test_vllm_keeps_the_contract_and_what_it_refuses_ends_that_request_alone(config):
    asyncio.run(check_contract(lambda: AlsoRefusing(config, on_gpu=False)))


@mock.patch.dict(os.environ)
def test_a_prompt_that_ends_in_an_illegible_character_is_no_part_of_the_completion(config, tmp_path):
    """Nothing but control tokens follows it, as in the templates of Mistral and DeepSeek."""
    template = tmp_path / "marked.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>")
    engine = VllmEngine(config.model_copy(update={"chat_template": str(template)}), on_gpu=False)
    request = ask("Tell it \ufffd")

    async def answers() -> tuple[str, str]:
        await engine.start()
        whole = await engine.generate(request)
        *pieces, _ = [piece async for piece in engine.stream(replace(request, id="again"))]
        await engine.stop()
        return whole.text, "".join(map(str, pieces))

    whole, streamed = asyncio.run(answers())
    assert whole == streamed
    assert "Tell it" not in whole


@mock.patch.dict(os.environ)
@pytest.mark.parametrize("args", [{"block_size": -3}, {"max_num_batched_tokens": 1}, {"no_such_argument": 1}])
def test_settings_that_can_never_work_are_refused_at_once(config, args):
    engine = build_engine(config.model_copy(update={"engine_args": args}))
    with pytest.raises(EngineStartError, match="vLLM refuses"):
        asyncio.run(engine.start())
