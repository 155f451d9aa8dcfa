"""How big a model is, from its Hugging Face config: parameters, weight bytes, KV-cache bytes per token.

Counts every weight of the families below exactly (checked against the published counts); an architecture that
is not listed gives None, never a guess. Activations are not here (see throughput.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moaa_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of a transformer that its memory and speed follow from."""

    num_params: int  # all weights, tied embeddings once
    num_active_params: int  # weights that one token passes through: without the experts it is not routed to
    num_embedding_params: int  # input and output embeddings, which quantisation leaves at 16 bits
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inner: int  # width of the feed-forward layers; of each expert where there are several
    num_experts: int
    context_window: int  # tokens the config allows
    checkpoint_bytes_per_weight: float = 2.0  # of the quantised weights, where the checkpoint is quantised

    def weight_bytes(self, bytes_per_weight: float) -> float:
        """Bytes of all weights; below 2 bytes per weight the embeddings stay at 2."""
        return (self.num_params - self.num_embedding_params) * bytes_per_weight + self.num_embedding_params * max(
            bytes_per_weight, 2.0
        )

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0, tensor_parallel: int = 1) -> float:
        """KV-cache bytes of one token over all layers; KV heads are copied where there are fewer than GPUs.

        Example: Llama-3.1-8B, bf16: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072. Sliding windows are not
        deducted, so Gemma-2 and Mistral-7B-v0.1 come out as if every layer saw everything.
        """
        return 2 * self.num_layers * max(self.num_kv_heads, tensor_parallel) * self.head_dim * bytes_per_value


QUANTIZED_BYTES = {
    "fp8": 1.0, "fbgemm_fp8": 1.0, "ptpc_fp8": 1.0, "modelopt": 1.0, "mxfp8": 1.03, "experts_int8": 1.0, "int8": 1.0,
    "awq": 0.52, "awq_marlin": 0.52, "gptq": 0.52, "gptq_marlin": 0.52, "auto-round": 0.52, "bitsandbytes": 0.52,
    "mxfp4": 0.53, "modelopt_fp4": 0.56,
}  # fmt: skip
"""Bytes per quantised weight by vLLM's name of the method, scales included: 4-bit weights in groups of 128 carry
16 + 4 bits per group (0.52), mxfp4 8 bits per 32 (0.53), nvfp4 8 bits per 16 (0.56). GPTQ with 8 bits is read from
the checkpoint's own config, not from here."""


def bytes_per_weight(shape: ModelShape, *, dtype: str = "auto", quantization: str | None = None) -> float | None:
    """Bytes of one weight in memory, or None when the quantisation is not known here.

    The recipe's quantisation wins over the checkpoint's. auto is 2: vLLM runs float32 checkpoints in 16 bits.
    """
    if shape.checkpoint_bytes_per_weight < 2.0:
        return shape.checkpoint_bytes_per_weight
    if quantization:
        return QUANTIZED_BYTES.get(quantization)
    return 4.0 if dtype == "float32" else 2.0


def shape_of_config(config: Mapping) -> ModelShape | None:
    """The shape that a `config.json` of the Hugging Face Hub describes; None for an architecture not known here.

    Known model_type: llama, mistral, mixtral, qwen2, qwen3, gemma2, phi3. Also None when the checkpoint is quantised
    in a way not known here. Raises ConfigError where a size is no size.
    """
    family = config.get("model_type")
    if family not in _KNOWN:
        return None
    for key in _SIZES:
        if not isinstance(size := config.get(key), int) or size < 1:
            raise ConfigError(f"config.json: {key} = {size!r} is not a whole number above 0; copy the model anew")
    checkpoint = _checkpoint_bytes(config.get("quantization_config"))
    if checkpoint is None:
        return None
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or (256 if family == "gemma2" else hidden // heads)
    experts = config.get("num_local_experts", 1) if family == "mixtral" else 1
    active_experts = config.get("num_experts_per_tok", 1) if family == "mixtral" else 1

    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    if config.get("attention_bias", False):
        attention += head_dim * (heads + 2 * kv_heads) + hidden
    elif family == "qwen2":
        attention += head_dim * (heads + 2 * kv_heads)  # Qwen2 has biases on q, k and v alone
    if family == "qwen3":
        attention += 2 * head_dim  # norms of q and k
    norms = (4 if family == "gemma2" else 2) * hidden
    expert = 3 * hidden * config["intermediate_size"]
    router = hidden * experts if experts > 1 else 0

    is_tied = config.get("tie_word_embeddings", family == "gemma2")
    embeddings = config["vocab_size"] * hidden * (1 if is_tied else 2)
    shared = layers * (attention + norms + router) + hidden + embeddings
    return ModelShape(
        num_params=shared + layers * experts * expert,
        num_active_params=shared + layers * active_experts * expert,
        num_embedding_params=embeddings,
        num_layers=layers,
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        inner=config["intermediate_size"],
        num_experts=experts,
        context_window=config.get("max_position_embeddings") or 0,
        checkpoint_bytes_per_weight=checkpoint,
    )


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_KNOWN = {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3"}


def _checkpoint_bytes(quantization: Mapping | None) -> float | None:
    """Bytes per weight of a `quantization_config`; 2 without one, None when it cannot be told."""
    if not quantization:
        return 2.0
    if not isinstance(quantization, Mapping):
        return None
    method = quantization.get("quant_method", "")
    bits = quantization.get("bits") or quantization.get("w_bit")
    groups = quantization.get("config_groups")
    if method == "compressed-tensors" and groups:
        bits = max((group.get("weights") or {}).get("num_bits", 16) for group in groups.values())
    if bits:
        return bits / 8 + (0.02 if bits <= 4 else 0.0)
    if method == "bitsandbytes":
        return 0.52 if quantization.get("load_in_4bit") else 1.0
    return QUANTIZED_BYTES.get(method)


def _config(
    family: str, layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int, window: int, **more: int
) -> dict:
    return {
        "model_type": family, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocab,
        "max_position_embeddings": window, **more,
    }  # fmt: skip


_MIXTRAL_8X22B = _config("mixtral", 56, 6144, 48, 8, 16384, 32000, 65536, num_local_experts=8, num_experts_per_tok=2)
_LLAMA_8B = _config("llama", 32, 4096, 32, 8, 14336, 128256, 131072)
_LLAMA_70B = _config("llama", 80, 8192, 64, 8, 28672, 128256, 131072)
_QWEN2_7B = _config("qwen2", 28, 3584, 28, 4, 18944, 152064, 32768)
_QWEN2_72B = _config("qwen2", 80, 8192, 64, 8, 29568, 152064, 32768)

PUBLISHED_CONFIGS: dict[str, dict] = {
    "alpindale/WizardLM-2-8x22B": _MIXTRAL_8X22B,
    "microsoft/WizardLM-2-8x22B": _MIXTRAL_8X22B,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": {**_MIXTRAL_8X22B, "vocab_size": 32768},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _config(
        "mixtral", 32, 4096, 32, 8, 14336, 32000, 32768, num_local_experts=8, num_experts_per_tok=2
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _config("mistral", 32, 4096, 32, 8, 14336, 32768, 32768),
    "mistralai/Mistral-Nemo-Instruct-2407": _config("mistral", 40, 5120, 32, 8, 14336, 131072, 131072, head_dim=128),
    "mistralai/Mistral-Small-24B-Instruct-2501": _config(
        "mistral", 40, 5120, 32, 8, 32768, 131072, 32768, head_dim=128
    ),
    "mistralai/Mistral-Large-Instruct-2407": _config("mistral", 88, 12288, 96, 8, 28672, 32768, 131072, head_dim=128),
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
    "meta-llama/Llama-3.1-405B-Instruct": _config("llama", 126, 16384, 128, 8, 53248, 128256, 131072),
    "meta-llama/Llama-3.2-1B-Instruct": _config("llama", 16, 2048, 32, 8, 8192, 128256, 131072, tie_word_embeddings=1),
    "meta-llama/Llama-3.2-3B-Instruct": _config("llama", 28, 3072, 24, 8, 8192, 128256, 131072, tie_word_embeddings=1),
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
    "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF": _LLAMA_70B,
    "google/gemma-2-2b-it": _config("gemma2", 26, 2304, 8, 4, 9216, 256000, 8192, head_dim=256),
    "google/gemma-2-9b-it": _config("gemma2", 42, 3584, 16, 8, 14336, 256000, 8192, head_dim=256),
    "google/gemma-2-27b-it": _config("gemma2", 46, 4608, 32, 16, 36864, 256000, 8192, head_dim=128),
    "microsoft/phi-4": _config("phi3", 40, 5120, 40, 10, 17920, 100352, 16384),
    "Qwen/Qwen1.5-72B-Chat": _config("qwen2", 80, 8192, 64, 64, 24576, 152064, 32768),
    "Qwen/Qwen1.5-110B-Chat": _config("qwen2", 80, 8192, 64, 8, 49152, 152064, 32768),
    "Qwen/Qwen2-7B-Instruct": _QWEN2_7B,
    "Qwen/Qwen2-72B-Instruct": _QWEN2_72B,
    "Qwen/Qwen2.5-0.5B-Instruct": _config("qwen2", 24, 896, 14, 2, 4864, 151936, 32768, tie_word_embeddings=1),
    "Qwen/Qwen2.5-1.5B-Instruct": _config("qwen2", 28, 1536, 12, 2, 8960, 151936, 32768, tie_word_embeddings=1),
    "Qwen/Qwen2.5-3B-Instruct": _config("qwen2", 36, 2048, 16, 2, 11008, 151936, 32768, tie_word_embeddings=1),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_7B,
    "Qwen/Qwen2.5-14B-Instruct": _config("qwen2", 48, 5120, 40, 8, 13824, 152064, 32768),
    "Qwen/Qwen2.5-32B-Instruct": _config("qwen2", 64, 5120, 40, 8, 27648, 152064, 32768),
    "Qwen/Qwen2.5-72B-Instruct": _QWEN2_72B,
    "Qwen/Qwen3-4B": _config("qwen3", 36, 2560, 32, 8, 9728, 151936, 40960, head_dim=128, tie_word_embeddings=1),
    "Qwen/Qwen3-8B": _config("qwen3", 36, 4096, 32, 8, 12288, 151936, 40960, head_dim=128),
    "Qwen/Qwen3-14B": _config("qwen3", 40, 5120, 40, 8, 17408, 151936, 40960, head_dim=128),
    "Qwen/Qwen3-32B": _config("qwen3", 64, 5120, 64, 8, 25600, 151936, 40960, head_dim=128),
}
"""The parts of config.json that count, by hub id, of the models that the paper and our recipes use and of others that
people mix: planning needs no network. Source: config.json of each on the Hugging Face Hub."""


def published_shape(hub_id: str) -> ModelShape | None:
    """The shape of a model that is known here by its hub id, in any case; None for others."""
    for name, config in PUBLISHED_CONFIGS.items():
        if name.lower() in (hub_id.lower(), hub_id.lower().replace("/meta-llama-3.1", "/llama-3.1")):
            return shape_of_config(config)
    return None
