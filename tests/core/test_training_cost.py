"""Operations, seconds and bytes of training, by hand for Llama-3.1-8B."""

import pytest

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.model_size import ModelShape, published_shape
from moaa_ray.core.training_cost import (
    START_S,
    TrainingWork,
    lora_state_bytes,
    num_adapter_weights,
    state_bytes,
    training_flops,
    training_seconds,
)


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


def test_adapters_are_counted_by_the_layers_they_are_beside():
    """A layer: q and o 4,096 + 4,096, k and v 4,096 + 1,024, three 4,096 + 14,336; 32 layers, rank 16."""
    assert num_adapter_weights(llama(), 16) == 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432) == 41_943_040
    assert num_adapter_weights(llama(), 8, ["q_proj", "v_proj"]) == 8 * 32 * (8192 + 5120)
    experts = published_shape("mistralai/Mixtral-8x22B-Instruct-v0.1")
    assert experts is not None
    assert num_adapter_weights(experts, 1) == 56 * (2 * (6144 + 6144) + 2 * (6144 + 1024))


def test_under_adapters_frozen_weights_take_their_own_bytes_and_two_thirds_of_the_operations():
    assert lora_state_bytes(llama(), 1_000_000, 2, 4) == (2 * 8_030_261_248 + 16_000_000) / 4
    work = TrainingWork(tokens=1e9, mean_length=1000, is_lora=True)
    assert training_flops(llama(), work) == pytest.approx(4e9 * 8_030_261_248 + 6e9 * 32 * 4096 * 1000)
