"""A model inside the pool worker, run by vLLM's asynchronous engine, on GPUs or CPUs.

The engine core runs in a child process of the worker, so that its death leaves the worker alive. One
request is one completion with a seed of its own; samples of one row share their prompt through vLLM's
prefix cache. Code from model folders is never run and weights are read from safetensors only.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.chat_tokens import ChatTokenizer
from moaa_ray.engines.weights import local_weights
from moaa_ray.settings.models import VllmModel
from moaa_ray.types import Completion, Message, Request, Sampling


class VllmEngine:
    """One vLLM engine. See base.Engine for the contract."""

    def __init__(self, config: VllmModel, *, on_gpu: bool):
        self._config = config
        self._on_gpu = on_gpu
        self._engine = None
        self._chat: ChatTokenizer | None = None
        self._lora = None
        self.window = 0
        self.max_attempts = config.max_attempts

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self._set_environment()
        from vllm import AsyncEngineArgs
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.async_llm import AsyncLLM

        folder = local_weights(self._config.model)
        self._chat = self._load_chat(folder)
        try:
            args = AsyncEngineArgs(**self._engine_args(folder))
            self._engine = AsyncLLM.from_engine_args(args)
        except (ValueError, TypeError, VLLMClientError) as error:  # vLLM's words for a setting that can never work
            raise EngineStartError(f"vLLM refuses {self._config.model}: {_first_lines(error)}") from error
        self.window = self._engine.model_config.max_model_len
        if self._config.lora:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("adapter", 1, local_weights(self._config.lora))

    def _set_environment(self) -> None:
        """Defaults of vLLM's environment; what the user has set wins."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if not self._on_gpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(self._config.num_cpus))))
            if self._config.num_gpus == 1:
                # The model then runs in the engine core's process (which stays a child of its own). With the
                # executor that vLLM takes on CPUs otherwise, core and model spin on shared memory in two
                # processes: twice the CPU time a token and one interpreter more to load (measured, 2 cores).
                os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

    def _load_chat(self, folder: str) -> ChatTokenizer:
        from transformers import AutoTokenizer

        template = self._config.chat_template
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, revision=self._config.revision or None, trust_remote_code=False
            )
            text = Path(template).read_text(encoding="utf-8") if template else None
        except (OSError, ValueError) as error:
            raise EngineStartError(
                f"cannot load the tokenizer of {self._config.model}: {_first_lines(error)}; check the name, "
                "the revision, and that the workers can read the folder or reach the hub"
            ) from error
        return ChatTokenizer(tokenizer, chat_template=text)

    def _engine_args(self, folder: str) -> dict:
        config = self._config
        tensor_parallel, pipeline_parallel = config.split
        args = {
            "model": folder,
            "revision": config.revision or None,
            "tokenizer_revision": config.revision or None,
            "max_model_len": config.context_window,
            "dtype": config.dtype,
            "quantization": config.quantization,
            "tensor_parallel_size": tensor_parallel,
            "pipeline_parallel_size": pipeline_parallel,
            "max_num_seqs": config.concurrency,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "load_format": "safetensors",
            "trust_remote_code": False,
        }
        if self._on_gpu:
            args |= {"gpu_memory_utilization": config.gpu_memory_fraction, "kv_cache_dtype": config.kv_cache_dtype}
        else:
            args |= {"enforce_eager": True}
            # vLLM 0.32 rewinds a seeded request's random generator after a prompt's partial step; the
            # CPU's generator has no offset, and the engine dies. So prompts are read in one step there.
            args |= {"enable_chunked_prefill": False}
            if config.dtype == "auto":
                args["dtype"] = "float32"
        if config.lora:
            args["enable_lora"] = True
        return args | config.engine_args

    async def generate(self, request: Request) -> Completion:
        prompt, flags = self._encode(request)
        final = None
        async for output in self._outputs(request, prompt, in_pieces=False):
            final = output
        assert final is not None
        done = final.outputs[0]
        completion = _completion(prompt, final, text=done.text, num_tokens=len(done.token_ids), flags=flags)
        return replace(completion, first_logprobs=_first_logprobs(done.logprobs, request.sampling.logprobs))

    async def stream(self, request: Request) -> AsyncIterator[str | Completion]:
        prompt, flags = self._encode(request)
        text, num_tokens, last = "", 0, None
        async with contextlib.aclosing(self._outputs(request, prompt, in_pieces=True)) as outputs:
            async for output in outputs:
                last, piece = output, output.outputs[0]
                text, num_tokens = text + piece.text, num_tokens + len(piece.token_ids)
                if piece.text:
                    yield piece.text
        assert last is not None
        yield _completion(prompt, last, text=text, num_tokens=num_tokens, flags=flags)

    def _encode(self, request: Request) -> tuple[list[int], tuple[str, ...]]:
        """Token ids of the prompt, and what was done to it."""
        assert self._chat is not None
        prompt, made_plain = self._chat.encode(request.messages)
        return prompt, ("role_tokens_plain",) if made_plain else ()

    async def _outputs(self, request: Request, prompt: list[int], *, in_pieces: bool) -> AsyncGenerator:
        """vLLM's outputs of one request, each with what is new in it, or only the final one; its errors as ours."""
        from vllm import SamplingParams
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead
        from vllm.v1.engine.exceptions import EngineGenerateError

        assert self._engine is not None
        assert self._chat is not None
        room = self.window - len(prompt)
        if room < 1:
            detail = f"prompt of {len(prompt)} tokens, window of {self.window}"
            raise RequestError("context_length", detail, retryable=False)
        kind = RequestOutputKind.DELTA if in_pieces else RequestOutputKind.FINAL_ONLY
        try:
            sampling = SamplingParams(
                **_sampling_args(request.sampling, room),
                seed=request.seed,
                output_kind=kind,
                # vLLM 0.32 takes a prompt whose text ends in U+FFFD for a character that is not complete yet, and puts
                # the whole prompt before the completion. With its control tokens the text ends in one of these.
                skip_special_tokens=not self._chat.ends_illegibly(prompt),
            )
            outputs = self._engine.generate({"prompt_token_ids": prompt}, sampling, request.id, lora_request=self._lora)
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output
        except VllmDead as error:
            raise EngineDeadError(str(error)) from error
        except (EngineGenerateError, GracefulHTTPError) as error:  # the first says nothing, only its cause does
            raise RequestError("engine_error", _first_lines(error.__cause__ or error), retryable=True) from error
        except (ValueError, VLLMClientError) as error:
            raise RequestError("bad_request", _first_lines(error), retryable=False) from error

    def count_tokens(self, messages: Sequence[Message]) -> int:
        assert self._chat is not None
        return self._chat.count(messages)

    async def stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)


def _completion(prompt: list[int], last, *, text: str, num_tokens: int, flags: tuple[str, ...]) -> Completion:
    """The completion whose last vLLM output this is."""
    return Completion(
        text=text,
        finish_reason=last.outputs[0].finish_reason or "unknown",
        prompt_tokens=len(prompt),
        completion_tokens=num_tokens,
        cached_tokens=last.num_cached_tokens or 0,
        flags=flags,
    )


def _sampling_args(sampling: Sampling, room: int) -> dict:
    """Arguments of vLLM's SamplingParams; the completion ends at the window at the latest (finish_reason length)."""
    args = {
        "max_tokens": min(sampling.max_tokens, room),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop),
        "logprobs": sampling.logprobs or None,
    }
    if sampling.json_schema or sampling.regex or sampling.choice:
        from vllm.sampling_params import StructuredOutputsParams

        args["structured_outputs"] = StructuredOutputsParams(
            json=sampling.json_schema or None,
            regex=sampling.regex or None,
            choice=list(sampling.choice) or None,
        )
    return args


def _first_logprobs(positions: Sequence | None, num: int) -> tuple[tuple[str, float], ...]:
    """The num likeliest tokens of the first position; vLLM adds the drawn one where it is not among them."""
    if not positions or not num:
        return ()
    found = [(each.decoded_token or "", each.logprob) for each in positions[0].values()]
    return tuple(sorted(found, key=lambda pair: -pair[1])[:num])


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
