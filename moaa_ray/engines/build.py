"""From a model of the recipe to its engine; the one place that knows all engines."""

from typing import assert_never

from moaa_ray.engines.base import Engine
from moaa_ray.settings.models import ClassifierModel, FakeModel, Model, OpenaiModel, RuleModel, VllmModel


def build_engine(config: Model, *, on_gpu: bool = False, share: float = 1.0) -> Engine:
    """The engine of a model, not started. Engines are imported when asked for, so that one needs not all libraries.

    Args: on_gpu: whether this worker was given GPUs (vllm, classifier); share: this worker's part of the endpoint's
    requests_per_minute (openai).
    """
    match config:
        case VllmModel():
            from moaa_ray.engines.vllm import VllmEngine

            return VllmEngine(config, on_gpu=on_gpu)
        case OpenaiModel():
            from moaa_ray.engines.openai import OpenaiEngine

            return OpenaiEngine(config, share=share)
        case ClassifierModel():
            from moaa_ray.engines.classifier import ClassifierEngine

            return ClassifierEngine(config, on_gpu=on_gpu)
        case RuleModel():
            from moaa_ray.engines.rule import RuleEngine

            return RuleEngine(config)
        case FakeModel():
            from moaa_ray.engines.fake import FakeEngine

            return FakeEngine(config)
        case _:
            assert_never(config)
