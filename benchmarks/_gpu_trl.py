"""TRL's SFTTrainer on the documents of gpu_training.py: tokens a second and peak memory."""

import argparse
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import _gpu_training
import torch


def measure(*, batch: int, arguments: argparse.Namespace) -> dict:
    """Steps of as many packs as ours, in microbatches of `batch`; packing bfd, full logits, autocast to bfloat16."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = _gpu_training.make_model(arguments.shape, torch.device("cuda"))
    num_steps = arguments.warm_up + arguments.steps
    packs = _gpu_training.make_packs(arguments.packs * num_steps, model.config.vocab_size)
    rows = [
        {"input_ids": d.tokens.tolist(), "labels": [int(t) if c else -100 for t, c in zip(d.tokens, d.counts)]}  # noqa: B905
        for pack in packs
        for d in pack
    ]
    ends: list[float] = []
    tokens = [0]

    class Timed(SFTTrainer):
        def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Any:
            mask = inputs.get("attention_mask")
            tokens[-1] += int(inputs["input_ids"].numel() if mask is None or mask.ndim != 2 else mask.sum())
            return super().training_step(model, inputs, num_items_in_batch)

    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())
            tokens.append(0)

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=arguments.packs // batch,
            learning_rate=_gpu_training.RATE,
            packing=True,
            packing_strategy="bfd",
            max_length=_gpu_training.PACK_TOKENS,
            bf16=True,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Timed(
            model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(model.config)
        )
        trainer.add_callback(Clock())
        trainer.train()
    seconds = [b - a for a, b in zip(ends[arguments.warm_up - 1 :], ends[arguments.warm_up :], strict=False)]
    rates = [n / s for n, s in zip(tokens[arguments.warm_up :], seconds, strict=False)]
    return {
        "tokens_per_s": _gpu_training.spread(rates),
        "step_s": _gpu_training.spread(seconds),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def tokenizer(config: Any) -> Any:
    """One that has a padding token, which is all that TRL asks of it here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")  # noqa: S106
