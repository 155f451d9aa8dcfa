"""Operations, seconds and bytes of training, by hand for Llama-3.1-8B."""

import pytest

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.model_size import ModelShape, published_shape
from moaa_ray.core.training_cost import START_S, TrainingWork, state_bytes, training_flops, training_seconds


def llama() -> ModelShape:
    shape = published_shape("meta-llama/Llama-3.1-8B-Instruct")
    assert shape is not None
    return shape


def test_a_billion_tokens_in_documents_of_a_thousand():
    """8,030,261,248 weights; attention looks back over half of 1,000 places in 32 layers of width 4,096."""
    flops = training_flops(llama(), TrainingWork(tokens=1e9, mean_length=1000))
    assert flops == pytest.approx(6e9 * (8_030_261_248 + 32 * 4096 * 1000))


def test_tokens_that_are_only_read_cost_a_third():
    trained = training_flops(llama(), TrainingWork(tokens=3e9, mean_length=500))
    assert training_flops(llama(), TrainingWork(tokens=0, forward_tokens=9e9, mean_length=500)) == trained


def test_twice_the_gpus_take_half_the_time_after_the_start():
    work, gpu = TrainingWork(tokens=1e9, mean_length=1000), gpu_type("H100")
    eight, sixteen = (training_seconds(llama(), work, gpu, num) - START_S for num in (8, 16))
    assert eight == pytest.approx(6e9 * (8_030_261_248 + 131_072_000) / (8 * 989e12 * 0.35))
    assert sixteen == pytest.approx(eight / 2)


def test_every_weight_takes_sixteen_bytes_over_all_gpus():
    assert state_bytes(llama(), 8) == 8_030_261_248 * 16 / 8
