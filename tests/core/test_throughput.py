import random
from math import exp
from statistics import fmean

import pytest

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.model_size import published_shape
from moaa_ray.core.throughput import EngineSize, check_memory, gpu_row_s, mean_until, tokens_per_s
from moaa_ray.errors import ConfigError


def engine(hub_id: str, *, bytes_per_weight: float = 2.0, window: int = 8192, num_gpus: int = 1, **more) -> EngineSize:
    shape = published_shape(hub_id)
    assert shape
    return EngineSize(
        shape=shape,
        bytes_per_weight=bytes_per_weight,
        kv_bytes_per_value=2.0,
        context_window=window,
        concurrency=more.pop("concurrency", 10**6),
        num_gpus=num_gpus,
        tensor_parallel=num_gpus,
        **more,
    )


LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("prompt_tokens", "out_tokens", "tokens"),
    [(250, 600, 34_200), (1000, 1000, 19_200), (3300, 700, 7_900), (2048, 128, 2_800)],
)
def test_the_roofline_gives_the_published_table_for_llama_8b_on_an_h200(prompt_tokens, out_tokens, tokens):
    """performance.md 1.1: 790e12 FLOP/s, 4.3e12 B/s, 141 GB x 0.92 less 16.06 GB of weights."""
    rate = tokens_per_s(
        engine(LLAMA),
        flops=790e12,
        bandwidth=4.3e12,
        kv_room_bytes=141e9 * 0.92 - 16.06e9,
        prompt_tokens=prompt_tokens,
        out_tokens=out_tokens,
    )
    assert rate == pytest.approx(tokens, rel=0.02)


def test_few_open_requests_leave_the_weights_to_be_read_for_few():
    """One request: 16.06 GB per token at 3.35 TB/s is 4.79 ms, 600 tokens 2.88 s, at 45 % 6.4 s."""
    alone = engine(LLAMA, concurrency=1)
    assert gpu_row_s(alone, gpu_type("H100"), prompt_tokens=250, out_tokens=600) == pytest.approx(6.4, rel=0.03)


def test_a_70b_in_16_bits_is_refused_on_one_80_gb_gpu_with_the_sum_and_the_way_out():
    """141.1 GB + 327,680 x 8,192 = 2.7 GB; one GPU has 80 x 0.92 - 2 = 71.6 GB, two 143.2, so four."""
    with pytest.raises(ConfigError) as refused:
        check_memory("big", engine("meta-llama/Llama-3.1-70B-Instruct"), gpu_type("H100"), most=4)
    text = str(refused.value)
    assert "models.big: 141.1 GB of weights + 2.7 GB of KV cache" in text
    assert "= 143.8 GB, but 1 x H100 have 71.6 GB" in text
    assert "set tensor_parallel: 4" in text


def test_the_same_70b_fits_on_two_in_fp8():
    engine_of_two = engine("meta-llama/Llama-3.1-70B-Instruct", bytes_per_weight=1.0, num_gpus=2)
    check_memory("big", engine_of_two, gpu_type("H100"), most=2)


def test_a_model_larger_than_a_node_is_told_to_use_pipeline_parallelism():
    """281 GB on T4s of 16 x 0.92 - 2 = 12.7 GB: 23 of them, so 32: 4 per node and 8 nodes."""
    with pytest.raises(ConfigError, match="tensor_parallel: 4 and pipeline_parallel: 8"):
        check_memory("moe", engine("alpindale/WizardLM-2-8x22B"), gpu_type("T4"), most=32)


def test_a_model_larger_than_the_cluster_is_not_told_to_use_more_gpus_than_there_are():
    """143.8 GB on L4s of 24 x 0.92 - 2 = 20.1 GB: 8 of them."""
    with pytest.raises(
        ConfigError, match="8 of them would hold it, and there is 1: add nodes or use others"
    ) as refused:
        check_memory("big", engine("meta-llama/Llama-3.1-70B-Instruct", num_gpus=4), gpu_type("L4"), most=1)
    assert "set tensor_parallel" not in str(refused.value)


def test_fp8_needs_a_gpu_that_computes_in_it_to_be_faster_at_prefill():
    fp8 = engine(LLAMA, bytes_per_weight=1.0)
    a100 = gpu_row_s(fp8, gpu_type("A100-80G"), prompt_tokens=3000, out_tokens=100)
    h100 = gpu_row_s(fp8, gpu_type("H100"), prompt_tokens=3000, out_tokens=100)
    assert a100 / h100 == pytest.approx(1979 / 312, rel=0.02)


def test_a_memory_fraction_that_leaves_nothing_is_refused():
    small = engine(LLAMA, gpu_memory_fraction=0.01)
    with pytest.raises(ConfigError, match=r"models.m.gpu_memory_fraction = 0.01: of 80 GB of H100 that leaves nothing"):
        check_memory("m", small, gpu_type("H100"), most=8)


def test_lengths_that_a_limit_ends_are_shorter_in_the_mean():
    """Against 100,000 draws; without spread the limit alone counts."""
    rng = random.Random(0)
    drawn = [min(48, 48 * exp(0.8 * rng.gauss(0, 1) - 0.32)) for _ in range(100_000)]
    assert mean_until(48, mean=48, sigma=0.8) == pytest.approx(fmean(drawn), rel=0.01)
    assert mean_until(10_000, mean=48, sigma=0.8) == pytest.approx(48, rel=0.001)
    assert [mean_until(limit, mean=48, sigma=0.0) for limit in (10, 100)] == [10, 48]
