"""Tiny language models made on the spot: real files, real engines, no download, no sense.

The demo and the tests load them with the same code that loads a 70B model. Each is a one-block Llama
whose weights are set, not trained, so that it babbles by the word pairs of a small corpus: the
residual stream carries only the present token's embedding, and embedding x head is the low-rank
logarithm of the corpus's token-pair counts. Different seeds give models that babble differently.
"""

import json
from itertools import pairwise
from pathlib import Path

from moaa_ray.demo.tiny_corpus import CORPUS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
}
_BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>"}
_VOCAB_SIZE = 1536
_WIDTH = 192


def make_tiny_model(folder: str | Path, *, seed: int, template: str = "chatml", window: int = 4096) -> Path:
    """A Hugging Face folder (safetensors, tokenizer, chat template) of a babbling 0.9M-parameter Llama.

    Args: template is one of chatml, llama3, gemma (gemma's refuses a system role, as the real one does);
    window is max_position_embeddings in tokens. An existing complete folder is kept as it is.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(template)
    pairs = _pair_counts(tokenizer, template)
    _save_model(folder, tokenizer, pairs, seed=seed, template=template, window=window)
    return folder


def _train_tokenizer(template: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    chat_template, special, end_of_turn = _TEMPLATES[template]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS.get(template), eos_token=end_of_turn, pad_token=end_of_turn
    )
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = chat_template
    return fast


def _pair_counts(tokenizer, template: str):
    import numpy as np

    counts = np.full((len(tokenizer), len(tokenizer)), 1e-5)
    end = tokenizer.convert_tokens_to_ids(_TEMPLATES[template][2])
    for paragraph in CORPUS:
        ids = [*tokenizer.encode(paragraph, add_special_tokens=False), end]
        for here, then in pairwise(ids):
            counts[here, then] += 1
        start = ids[0]
        counts[tokenizer.encode("\n", add_special_tokens=False)[-1], start] += 3
        counts[tokenizer.encode("\n\n", add_special_tokens=False)[-1], start] += 3
    special = [tokenizer.convert_tokens_to_ids(token) for token in _TEMPLATES[template][1]]
    counts[:, [i for i in special if i != end]] = 1e-6
    return counts


def _save_model(folder: Path, tokenizer, pairs, *, seed: int, template: str, window: int) -> None:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    noise = np.random.default_rng(seed).normal(scale=0.35, size=pairs.shape)
    log_probs = np.log(pairs / pairs.sum(axis=1, keepdims=True)) + noise
    left, sizes, right = np.linalg.svd(log_probs - log_probs.mean(axis=1, keepdims=True), full_matrices=False)
    left = left[:, :_WIDTH] * sizes[:_WIDTH]
    # RMSNorm rescales each embedding to length sqrt(width); a head cannot undo a per-row factor,
    # so rows are given one common sharpness instead: it only changes each row's temperature.
    embed = left / np.linalg.norm(left, axis=1, keepdims=True) * np.sqrt(_WIDTH)
    sharpness = 1.6 * np.median(np.linalg.norm(left, axis=1)) / np.sqrt(_WIDTH)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embed).float())
        model.lm_head.weight.copy_(torch.from_numpy(right[:_WIDTH].T * sharpness).float())
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
