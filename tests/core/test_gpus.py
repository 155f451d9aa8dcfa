import pytest

from moaa_ray.core.gpus import GPU_TYPES, gpu_type
from moaa_ray.errors import ConfigError


def test_an_h200_has_141_gb_and_989_dense_tflops():
    gpu = gpu_type("H200")
    assert gpu.memory_bytes == 141e9
    assert gpu.bf16_flops == 989e12
    assert gpu.bandwidth == 4.8e12


def test_names_in_other_spellings_mean_the_same_type():
    assert gpu_type("nvidia h100") == gpu_type("H100-80G") == GPU_TYPES["H100"]
    assert gpu_type("a100_80gb") == GPU_TYPES["A100-80G"]


def test_a_plain_a100_is_taken_as_the_smaller_one():
    assert gpu_type("A100").memory_bytes == 40e9


def test_cards_without_fp8_arithmetic_say_zero():
    assert {name for name, gpu in GPU_TYPES.items() if gpu.fp8_flops == 0} == {
        "A100-40G", "A100-80G", "A10G", "T4", "V100",
    }  # fmt: skip


def test_an_unknown_type_names_the_nearest():
    with pytest.raises(ConfigError, match=r"gpu = 'H1000'.*did you mean H100"):
        gpu_type("H1000")
