"""The model in training: a `transformers` decoder asked for losses and log-probabilities, never for logits.

The whole computation of a loss's ingredients is one forward call of one module, so that FSDP2, DDP and
ZeRO-3, which act around forward calls, gather every weight it needs.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from moaa_ray.data.documents import Document
from moaa_ray.errors import ConfigError
from moaa_ray.training import attention
from moaa_ray.training.head import Head
from moaa_ray.training.microbatch import Microbatch, lay_out
from moaa_ray.training.products import Linear


class Student(nn.Module):
    """A causal language model of `transformers` behind the one question training asks of it."""

    def __init__(self, model: nn.Module):
        """Takes the model over: its attention and output layer are exchanged in place, its weights are not."""
        super().__init__()
        check_supported(model)
        attention.register()
        model.config._attn_implementation = attention.NAME  # pyright: ignore
        config = model.config
        head = Head(model.get_output_embeddings().weight, getattr(config, "final_logit_softcapping", None))  # pyright: ignore
        if getattr(config, "tie_word_embeddings", False):
            head.weight = model.get_input_embeddings().weight  # pyright: ignore
        model.set_output_embeddings(head)  # pyright: ignore
        fuse_norms(model)
        exchange_linears(model)
        rotate_by_token(model)
        self.model = model

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's own list of layers."""
        return self.model.base_model.layers  # pyright: ignore

    @property
    def head(self) -> Head:
        """The output layer."""
        return self.model.get_output_embeddings()  # pyright: ignore

    def forward(self, batch: Microbatch, weights: Tensor | None = None) -> Tensor:
        """Log-probabilities of the targets [N], float32; with weights [N] the sum of -weight x log-probability."""
        states = self.model.base_model(  # pyright: ignore
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            use_cache=False,
            **batch.spans.arguments(),
        ).last_hidden_state[0]
        return self.head(states.index_select(0, batch.sources), batch.targets, weights)


def check_supported(model: nn.Module) -> None:
    """Raise ConfigError for a model whose forward pass holds what Student would leave out."""
    config = model.config
    name = type(model).__name__
    for field in ("logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ConfigError(f"student {name}: {field} is not supported; choose a Llama, Qwen, Gemma or Mistral model")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ConfigError(
            f"student {name}: its layers of {', '.join(sorted(kinds))} would carry one document's state into the next "
            "of a pack; choose a model of attention layers only: Llama, Qwen2/3, Gemma, Mistral"
        )
    if not isinstance(getattr(model.base_model, "layers", None), nn.ModuleList):  # pyright: ignore
        raise ConfigError(f"student {name} has no list of decoder layers that training could wrap")
    output = model.get_output_embeddings()  # pyright: ignore
    if not isinstance(output, nn.Linear) or output.bias is not None:
        raise ConfigError(f"student {name} has no output layer of one weight and no bias")


def check_attention(student: Student) -> None:
    """Raise ConfigError for a model whose layers do not hand on to attention where documents begin and end.

    Its parameters and buffers go to the meta device, where a forward pass computes shapes only: seconds, also for 70B.
    """
    two = Document(tokens=np.zeros(2, np.int32), counts=np.ones(2, bool))
    batch = lay_out([two, two])
    model = student.to("meta").model
    tokens = batch.tokens[None].to("meta")
    mask = torch.empty(1, 1, 4, 4, device="meta")  # our attention needs none; transformers would look into positions
    try:
        with torch.no_grad():
            model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False, **batch.spans.arguments())  # pyright: ignore
    except TypeError as error:
        raise ConfigError(
            f"student {type(model).__name__}: its layers call attention in another way ({error}), so the documents of "
            "a pack would not be kept apart; choose a Llama, Qwen, Gemma or Mistral model"
        ) from error
    except RuntimeError:
        return  # what depends on values, as experts' routing does, cannot be tried without them


class FusedRMSNorm(nn.Module):
    """weight x (x / rms(x)) in one operation; takes the parameter of the norm it replaces."""

    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> [..., D]."""
        return torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def fuse_norms(model: nn.Module) -> None:
    """Exchange the norms of the Llama kind (weight x normed; not Gemma's 1 + weight) for the fused one."""
    for parent in model.modules():
        for name, child in parent.named_children():
            is_llama_kind = type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon")
            if is_llama_kind and type(child).__name__ in LLAMA_KIND_NORMS:
                setattr(parent, name, FusedRMSNorm(child.weight, child.variance_epsilon))  # pyright: ignore


def exchange_linears(model: nn.Module) -> None:
    """Exchange linear layers for those whose products on CPUs are oneDNN's."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Linear(child))


def rotate_by_token(model: nn.Module) -> None:
    """Have the model's modeling module of `transformers` turn queries and keys with attention.rotate, for good."""
    modeling = sys.modules[type(model).__module__]
    if modeling.__name__.rpartition("_")[2] in LLAMA_KIND_ROTATIONS:
        modeling.apply_rotary_pos_emb = attention.rotate  # pyright: ignore


LLAMA_KIND_ROTATIONS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
LLAMA_KIND_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
