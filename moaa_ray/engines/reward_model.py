"""The forward pass of a reward model: token ids in, one number each out.

Any sequence-classification model that `transformers` itself knows, on one GPU or on CPUs. Left out are models
that bring code of their own, and weights that are not safetensors.
"""

from collections.abc import Callable, Mapping, Sequence

from moaa_ray.engines.base import EngineStartError
from moaa_ray.settings.models import ClassifierModel


class RewardModel:
    """Token ids -> scores, with the weights."""

    def __init__(self, model, *, column: int):
        self._model = model
        self._config = model.config.get_text_config()
        self._column = column
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_positions: int = getattr(self._config, "max_position_embeddings", None) or 0
        # Decoders score the last token that is not the padding token, so that id is part of the model.
        pad = self._config.pad_token_id
        self._pad = pad if pad is not None and 0 <= pad < self.vocab_size else None

    def scores(self, batch: Sequence[list[int]]) -> list[float | None]:
        """The score of each conversation; None for one that is too long for the GPU's memory."""
        import torch

        return in_halves(self._forward, batch, torch.OutOfMemoryError)

    def _forward(self, batch: Sequence[list[int]]) -> list[float]:
        import torch

        pad = self._pad if self._pad is not None else self._neutral_pad(batch)
        longest = max(map(len, batch))
        ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in batch])
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
        with torch.inference_mode():
            device = self._model.device
            logits = self._model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits
            return logits[:, self._column].double().cpu().tolist()

    def _neutral_pad(self, batch: Sequence[list[int]]) -> int:
        """A padding token for a model that has none: any with which no conversation of the batch ends.

        The end-of-turn token would not do: conversations do end with it, and their score would then be
        read one token too early.
        """
        ends = {ids[-1] for ids in batch}
        self._config.pad_token_id = next(i for i in range(self.vocab_size) if i not in ends)
        return self._config.pad_token_id


def in_halves(
    forward: Callable[[Sequence[list[int]]], list[float]], batch: Sequence[list[int]], too_big: type[Exception]
) -> list[float | None]:
    """What forward says of each, asked again for half as many where it raises too_big; None where one is too big."""
    try:
        return [*forward(batch)]
    except too_big:
        pass  # what holds the failed pass's memory is gone once this block is left
    if len(batch) == 1:
        return [None]
    middle = len(batch) // 2
    return in_halves(forward, batch[:middle], too_big) + in_halves(forward, batch[middle:], too_big)


def load_reward_model(config: ClassifierModel, folder: str, *, on_gpu: bool) -> RewardModel:
    """The model in a local folder or of a hub id. Raises EngineStartError when it is none that can score."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            revision=config.revision or None,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise EngineStartError(
            f"cannot load {config.model} as a reward model: {_first_lines(error)}; check the name, the revision, "
            "that the weights are safetensors, and that transformers knows the architecture without code of its own"
        ) from error
    unset = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unset:
        raise EngineStartError(
            f"{config.model} has no weights for {', '.join(unset[:3])}{' and more' * (len(unset) > 3)} of "
            f"{type(model).__name__}, so its scores would be random; give a reward model, one that was trained and "
            "saved with a head for sequence classification"
        )
    column = score_column(config.label, model.config.id2label, model=config.model)
    model.config.get_text_config().use_cache = False  # nothing is generated, so no keys and values need be kept
    if dtype != "float32":
        _sharpen_head(model)
    return RewardModel(model.eval().to("cuda" if on_gpu else "cpu"), column=column)


def _sharpen_head(model) -> None:
    """Compute the last layer in float32: bfloat16 has steps of 0.06 between 8 and 16, and candidates would tie."""
    from torch import nn

    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    for head in heads[-1:]:
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def score_column(label: int | str | None, names: Mapping[int, str], *, model: str) -> int:
    """Which of the model's numbers is the score. Raises EngineStartError when the recipe does not say, or wrongly."""
    if label is None and len(names) == 1:
        return 0
    known = ", ".join(f"{i} ({name})" for i, name in sorted(names.items()))
    if label is None:
        raise EngineStartError(f"{model} gives {len(names)} numbers, {known}; set `label` to the one that is the score")
    for i, name in names.items():
        if label in (i, name):
            return i
    raise EngineStartError(f"label = {label!r}: {model} has no such label; set it to one of {known}")


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
