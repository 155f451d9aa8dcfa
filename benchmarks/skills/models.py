"""Character-level Hugging Face folders: a Llama of some 100,000 parameters, and a tokenizer with one token a byte.

The fixed sentences of the aggregate-and-synthesize prompt are tokens of their own, as they would be to a tokenizer
that has seen enough such prompts. Text goes through it unchanged, and a prompt of some 1,300 characters is some 150
tokens to an aggregator that must be trained in minutes.
"""

import json
import re
from pathlib import Path

import torch

from moaa_ray.core.templates import aggregate_messages

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
WINDOW = 1024
"""Tokens of prompt and completion together that a model is made for."""
MAX_PROPOSALS = 5
"""Numbered places of proposals that are one token each."""


def fixed_pieces() -> list[str]:
    """The texts of the aggregate prompt that stand between fences and proposals, each once, in their order."""
    proposals = [f"@proposal-{i}@" for i in range(MAX_PROPOSALS)]
    (system,) = aggregate_messages([], proposals, fence="@fence@")
    pieces = re.split(r"@fence@|@proposal-\d@", system["content"])
    return [piece for piece in dict.fromkeys(pieces) if len(piece) > 1]


def make_tokenizer():
    """A fast tokenizer of one token per byte, the fixed pieces, and four tokens that steer a conversation."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed_pieces()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=WINDOW,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer, *, seed: int, width: int = 64, layers: int = 3):
    """A Llama with random weights; heads are 32 wide, the least that vLLM's attention takes on CPUs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def save(model, tokenizer, folder: str | Path) -> None:
    """Write a Hugging Face folder, the weights in bfloat16."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")


def load(folder: str | Path):
    """The model of a folder in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder)
