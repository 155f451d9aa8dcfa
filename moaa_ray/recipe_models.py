"""The `models` section of a recipe: one class per engine, and the base of every section.

Nothing here imports Ray, torch or vLLM.
"""

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=100)]
"""What may become a column, a file or a folder name."""

_HOST_PORT_PATH = re.compile(r"(\[[^]/]*\]|[^:/]*)(?::([^/]*))?(/.*)?", re.DOTALL)

Fault = Literal["error", "flaky", "refuse", "hang", "dead", "exit", "empty", "long", "start_fails"]


_EXECUTION_ARGS = """
async_scheduling block_size cpu_offload_gb disable_custom_all_reduce disable_log_stats distributed_executor_backend
download_dir enable_chunked_prefill enable_expert_parallel enable_log_requests enable_prefix_caching enforce_eager
kv_cache_memory_bytes long_prefill_token_threshold max_cudagraph_capture_size max_num_batched_tokens
max_num_scheduled_tokens max_parallel_loading_workers num_gpu_blocks_override prefix_caching_hash_algo
safetensors_load_strategy safetensors_prefetch_num_threads scheduling_policy shutdown_timeout stream_interval
use_tqdm_on_load
"""
EXECUTION_ARGS = frozenset(_EXECUTION_ARGS.split())
"""Of vLLM's arguments those known to say how fast or where; every other one counts as changing rows."""


class Execution:
    """Marker for fields that change how rows are made but not their content."""


class ExecutionKeys:
    """Marker for a mapping in which only these keys are Execution."""

    def __init__(self, keys: frozenset[str]):
        self.keys = keys


class Config(BaseModel):
    """Base of every section: frozen, no unknown keys, no value in pydantic's own messages (it may be a secret).

    The text under a field is its documentation.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


class ReplicaRange(Config):
    """An autoscaling pool."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}; swap them")
        return self


Replicas = Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange


class ModelConfig(Config):
    """What all engines share."""

    replicas: Annotated[Replicas, Execution] = "auto"
    """Engines of this model: a number, {min, max} for an autoscaling pool, or auto (the planner balances all pools)."""
    concurrency: Annotated[int, Execution] = Field(default=64, ge=1)
    """Requests that one engine works on at a time (vLLM: max_num_seqs; endpoints: open requests per worker)."""
    request_timeout_s: Annotated[float, Execution] = Field(default=600.0, gt=0)
    """Seconds after which a request counts as hung."""
    max_attempts: Annotated[int, Execution] = Field(default=3, ge=1, le=20)
    """How often one request is tried before it is a failure."""
    num_cpus: Annotated[float, Execution] = Field(default=1.0, ge=0)
    """CPU slots one worker takes."""
    price_per_million_tokens: Annotated[float | None, Execution] = Field(default=None, ge=0)
    """US dollars per million tokens, prompt and completion alike; for the plan and the summary only."""


class VllmModel(ModelConfig):
    """A model inside the pool's own workers, on GPUs or CPUs, run by vLLM."""

    engine: Literal["vllm"]
    model: str
    """A local folder (relative to the recipe's), a cloud URI of one, or a hub id."""
    revision: str = ""
    """A hub commit; empty for local folders."""
    context_window: int | None = Field(default=None, ge=16)
    """Tokens of prompt and completion together; unset: what the model's config says."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str | None = None
    """vLLM's name of a weight quantisation, e.g. fp8, awq, gptq."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    lora: str | None = None
    """Folder of a LoRA adapter to put on the model."""
    chat_template: str | None = None
    """File with a chat template, instead of the tokenizer's own."""
    tensor_parallel: Annotated[int, Execution] = Field(default=1, ge=1)
    """GPUs that one layer is split over."""
    pipeline_parallel: Annotated[int, Execution] = Field(default=1, ge=1)
    """Groups of GPUs that the layers are split over; a model over several nodes is split this way."""
    device: Annotated[Literal["auto", "gpu", "cpu"], Execution] = "auto"
    """auto: GPUs where the cluster has any, CPUs otherwise."""
    gpu_memory_fraction: Annotated[float, Execution] = Field(default=0.92, gt=0, le=1)
    engine_args: Annotated[dict[str, str | int | float | bool | None], ExecutionKeys(EXECUTION_ARGS)] = {}
    """Further arguments of vLLM's AsyncEngineArgs, as they are; those in EXECUTION_ARGS may change during a run."""

    @field_validator("engine_args")
    @classmethod
    def _no_remote_code(cls, args: dict) -> dict:
        own = {
            "model": "model", "revision": "revision", "max_model_len": "context_window", "dtype": "dtype",
            "quantization": "quantization", "tensor_parallel_size": "tensor_parallel",
            "pipeline_parallel_size": "pipeline_parallel", "max_num_seqs": "concurrency",
            "gpu_memory_utilization": "gpu_memory_fraction", "kv_cache_dtype": "kv_cache_dtype",
        }  # fmt: skip
        for key in args:
            if key in own:
                raise ValueError(f"{key} is the field {own[key]} of the model; set that instead")
            if key in ("trust_remote_code", "hf_overrides", "worker_cls", "worker_extension_cls", "load_format"):
                raise ValueError(
                    f"{key} could run or unpickle code from a model folder; it is not offered, take it out"
                )
            if re.search(r"token$|password|secret|api_key", key):
                raise ValueError(
                    f"{key} is a secret; take it out and set it in the workers' environment (e.g. HF_TOKEN)"
                )
        return args

    @property
    def num_gpus(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel * self.pipeline_parallel


class OpenaiModel(ModelConfig):
    """A model behind any OpenAI-compatible endpoint."""

    engine: Literal["openai"]
    model: str
    """The model's name at the endpoint."""
    base_url: Annotated[str, Execution]
    """For example http://127.0.0.1:8000/v1"""
    revision: str = ""
    """Anything that tells versions of the endpoint's model apart; kept with every row."""
    api_key: Annotated[str | None, Execution] = None
    """${NAME} of an environment variable that the workers have; a key itself is refused here."""
    context_window: int | None = Field(default=None, ge=16)
    """Tokens of prompt and completion together; needed to shorten proposals for an aggregator."""
    system_role: bool = True
    """false: fold the system prompt into the first user turn (templates without a system role)."""
    requests_per_minute: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Limit of the endpoint, shared by all replicas of this pool."""
    num_cpus: Annotated[float, Execution] = Field(default=0.1, ge=0)

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]", url):
            raise ValueError("it does not start with http:// or https:// and a host; write it as http://host:8000/v1")
        if re.search(r"[@?#\s]", url):
            raise ValueError("it holds a user, a query or a blank, where secrets leak; use api_key: ${NAME} instead")
        host, port, path = _HOST_PORT_PATH.fullmatch(url.partition("://")[2]).groups()  # pyright: ignore - fits any text
        if not _is_host(host):
            raise ValueError("its host is no name or IP address; write it as http://host:8000/v1 or http://[::1]:8000")
        if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            raise ValueError("its port is no number from 1 to 65535; write it as http://host:8000/v1")
        if re.search(r"/(completions|models|responses)/*$", path or ""):
            raise ValueError("it is one of the endpoint's own addresses; end it before them, as http://host:8000/v1")
        return url

    @field_validator("api_key")
    @classmethod
    def _only_a_reference(cls, key: str | None) -> str | None:
        if key is not None and not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", key):
            raise ValueError("a secret stands in the recipe; write ${NAME} and set NAME in the workers' environment")
        return key


def _is_host(host: str) -> bool:
    """Whether it is an IP address, the one of version 6 in brackets, or could be the name of a machine."""
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        try:
            return ipaddress.ip_address(host.strip("[]")).version == (6 if host.startswith("[") else 4)
        except ValueError:
            return False
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(re.fullmatch(r"[^\W_]([\w-]{0,61}[^\W_])?", label) for label in labels)


class FakeModel(ModelConfig):
    """Deterministic text from (messages, seed), with a latency model and faults on demand; for tests and benchmarks."""

    engine: Literal["fake"]
    model: str = "fake"
    revision: str = ""
    context_window: int | None = Field(default=8192, ge=16)
    system_role: bool = True
    completion_tokens: int = Field(default=48, ge=1)
    """Mean length of a completion in words (one word counts as one token)."""
    length_sigma: float = Field(default=0.0, ge=0)
    """Standard deviation of the log of the length; 0.8 is a heavy tail."""
    start_s: Annotated[float, Execution] = Field(default=0.0, ge=0)
    """Seconds to start."""
    tokens_per_s: Annotated[float, Execution] = Field(default=0.0, ge=0)
    """Tokens per second of one engine with all its slots busy; 0: no waiting at all."""
    faults: Annotated[dict[str, Fault], Execution] = {}
    """Pattern in the last user turn: what happens. May change during a run, so that tests can mend what they broke."""
    num_cpus: Annotated[float, Execution] = Field(default=0.1, ge=0)


Model = Annotated[VllmModel | OpenaiModel | FakeModel, Field(discriminator="engine")]
