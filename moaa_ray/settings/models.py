"""The `models` section of a recipe: one class per engine.

Nothing here imports Ray, torch or vLLM.
"""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from moaa_ray.settings.base import NAME, Config, Execution, ExecutionKeys, ModelConfig, Name, ReplicaRange

__all__ = [
    "BUILT_IN_RULES", "EXECUTION_ARGS", "NAME", "ClassifierModel", "Config", "Execution", "ExecutionKeys", "FakeModel",
    "Fault", "Model", "ModelConfig", "Name", "OpenaiModel", "ReplicaRange", "RuleModel", "VllmModel", "WeightsModel",
]  # fmt: skip

_HOST_PORT_PATH = re.compile(r"(\[[^]/]*\]|[^:/]*)(?::([^/]*))?(/.*)?", re.DOTALL)

BUILT_IN_RULES = ("longest", "shortest")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

Degree = Literal["auto"] | Annotated[int, Field(ge=1)]
"""Over how many GPUs, or groups of them."""

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


class WeightsModel(ModelConfig):
    """What the engines share that load a model's weights into the pool's own workers, on GPUs or CPUs."""

    model: str
    """A local folder (relative to the recipe's), a cloud URI of one, or a hub id."""
    revision: str = ""
    """A hub commit; empty for local folders."""
    context_window: int | None = Field(default=None, ge=16)
    """Tokens of prompt and completion together; unset: what the model's config says."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: float32 on CPUs; on GPUs vLLM's choice, and bfloat16 for a classifier."""
    chat_template: str | None = None
    """File with a chat template, instead of the tokenizer's own."""
    device: Annotated[Literal["auto", "gpu", "cpu"], Execution] = "auto"
    """auto: GPUs where the cluster has any, CPUs otherwise."""


class VllmModel(WeightsModel):
    """A model that writes, run by vLLM."""

    engine: Literal["vllm"]
    quantization: str | None = None
    """vLLM's name of a weight quantisation, e.g. fp8, awq, gptq."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    lora: str | None = None
    """Folder of a LoRA adapter to put on the model."""
    tensor_parallel: Annotated[Degree, Execution] = "auto"
    """GPUs that one layer is split over. auto: the planner takes the fewest that fit, or more where those leave so
    little room for the KV cache that each GPU does less; 1 on CPUs and for models of unknown size."""
    pipeline_parallel: Annotated[Degree, Execution] = "auto"
    """Groups of GPUs that the layers are split over; a model over several nodes is split this way. auto: 1, or as many
    as needed where tensor_parallel is auto too and no node is large enough."""
    gpu_memory_fraction: Annotated[float, Execution] = Field(default=0.92, gt=0, le=1)
    engine_args: Annotated[dict[str, str | int | float | bool | None], ExecutionKeys(EXECUTION_ARGS)] = Field(
        default={}
    )
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
    def split(self) -> tuple[int, int]:
        """tensor_parallel and pipeline_parallel; what is still auto, because no planner has chosen, is 1."""
        tensor, pipeline = self.tensor_parallel, self.pipeline_parallel
        return (1 if tensor == "auto" else tensor), (1 if pipeline == "auto" else pipeline)

    @property
    def num_gpus(self) -> int:
        """GPUs that the model is split over."""
        return self.split[0] * self.split[1]


class ClassifierModel(WeightsModel):
    """A reward model as a judge: any sequence-classification model of Hugging Face. Its completion is the score."""

    engine: Literal["classifier"]
    label: int | str | None = None
    """Which of the model's numbers is the score, by position or by name; unset: the only one."""
    batch_tokens: Annotated[int | None, Execution] = Field(default=None, ge=1)
    """Tokens of one forward pass, padding included; a longer conversation goes alone. Unset: 16,384 on a GPU, 2,048 on
    CPUs, where larger batches are no faster and answer later."""

    @property
    def num_gpus(self) -> int:
        """The whole model stands on one."""
        return 1


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
    """Limit of the endpoint, shared by all workers that ask this model at a time, whatever they ask it for."""
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


class RuleModel(ModelConfig):
    """A Python function as a judge, for checkable answers and for tests. Its completion is the score.

    The function is the user's own code: the workers import it by name and run it with their own rights.
    """

    engine: Literal["rule"]
    function: str
    """longest or shortest (in characters), or package.module:function, which the workers must be able to import."""
    revision: str = ""
    """Anything that tells versions of the function apart; kept with every row, as changed code alone is not noticed."""
    num_cpus: Annotated[float, Execution] = Field(default=0.1, ge=0)

    @field_validator("function")
    @classmethod
    def _named(cls, function: str) -> str:
        if function not in BUILT_IN_RULES and not _FUNCTION.fullmatch(function):
            raise ValueError(
                f"it is not {', '.join(BUILT_IN_RULES)} or of the form package.module:function; write one of these"
            )
        return function

    @property
    def model(self) -> str:
        """What stands with the rows as the model."""
        return self.function


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
    faults: Annotated[dict[str, Fault], Execution] = Field(default={})
    """Pattern in the last user turn: what happens. May change during a run, so that tests can mend what they broke."""
    num_cpus: Annotated[float, Execution] = Field(default=0.1, ge=0)


Model = Annotated[VllmModel | OpenaiModel | ClassifierModel | RuleModel | FakeModel, Field(discriminator="engine")]
