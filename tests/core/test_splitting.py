"""Sums by hand with published shapes: an H100 has 80 x 0.92 - 2 = 71.6 GB for an engine, an H200 127.7, a T4 12.7."""

import pytest

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.model_size import published_shape
from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.core.splitting import degrees, fastest, fitting, over_nodes
from moaa_ray.core.throughput import EngineSize, gpu_row_s
from moaa_ray.errors import ConfigError

LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"
QWEN_7B, QWEN_110B = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen1.5-110B-Chat"
WIZARD = "alpindale/WizardLM-2-8x22B"


def engine(hub_id: str, *, window: int = 8192, bytes_per_weight: float = 2.0, concurrency: int = 64) -> EngineSize:
    shape = published_shape(hub_id)
    assert shape
    return EngineSize(
        shape=shape,
        bytes_per_weight=bytes_per_weight,
        kv_bytes_per_value=2.0,
        context_window=window,
        concurrency=concurrency,
    )


def fits_at(size: EngineSize, gpu: str, most: int = 8) -> list[int]:
    return [each.tensor_parallel for each in fitting(size, gpu_type(gpu), most=most)]


def nodes(count: int, gpus: int, gpu: str) -> Cluster:
    return Cluster(nodes=(Node(num_gpus=gpus, num_cpus=8 * gpus, gpu=gpu),) * count)


@pytest.mark.parametrize(
    ("hub_id", "expected"),
    [
        (LLAMA_70B, [1, 2, 4, 8, 16, 32, 64]),  # 64 heads
        (QWEN_7B, [1, 2, 4]),  # 28 heads
        (WIZARD, [1, 2, 4, 8, 16]),  # 48 heads
    ],
)
def test_a_degree_divides_the_attention_heads(hub_id, expected):
    shape = published_shape(hub_id)
    assert shape
    assert degrees(shape, 64) == expected


def test_a_degree_is_no_more_than_a_node_has():
    shape = published_shape(LLAMA_70B)
    assert shape
    assert degrees(shape, 6) == [1, 2, 4]


def test_kv_heads_are_shared_out_evenly_or_copied_evenly():
    """10 KV heads over 4 GPUs would leave two of them with more; over 2 they are 5 each."""
    shape = published_shape(LLAMA_70B)
    assert shape
    uneven = type(shape)(**{**shape.__dict__, "num_heads": 40, "num_kv_heads": 10})
    assert degrees(uneven, 8) == [1, 2]


def test_an_8b_fits_on_one_gpu():
    """16.1 GB + 8,192 x 131,072 = 1.1 GB."""
    assert fits_at(engine(LLAMA_8B), "H100") == [1, 2, 4, 8]


def test_a_70b_in_16_bits_takes_four_gpus_of_80_gb_and_two_of_141():
    """141.1 GB + 8,192 x 327,680 = 2.7 GB: 143.8 GB, more than 2 x 71.6 = 143.2; 2 x 127.7 = 255.4."""
    assert fits_at(engine(LLAMA_70B), "H100")[0] == 4
    assert fits_at(engine(LLAMA_70B), "H200")[0] == 2


def test_a_110b_takes_four_gpus_in_16_bits_and_two_in_8():
    """222.4 GB + 32,768 x 327,680 = 10.7 GB: 4 x 71.6 = 286.4. In FP8 113.7 + 10.7: 2 x 71.6 = 143.2."""
    assert fits_at(engine(QWEN_110B, window=32768), "H100")[0] == 4
    assert fits_at(engine(QWEN_110B, window=32768, bytes_per_weight=1.0), "H100")[0] == 2


def test_a_larger_degree_is_taken_where_the_smallest_leaves_few_requests_side_by_side():
    """The 110B in FP8 has 29.5 GB of KV room on two GPUs: 45 requests of 2,000 tokens; on four 172.7: 256 of them."""
    size = engine(QWEN_110B, window=32768, bytes_per_weight=1.0, concurrency=256)
    sizes = fitting(size, gpu_type("H100"), most=8)

    def row_s(each: EngineSize) -> float:
        return gpu_row_s(each, gpu_type("H100"), prompt_tokens=1700, out_tokens=600)

    assert fastest(sizes, row_s).tensor_parallel == 4


def test_of_about_equals_the_smallest_degree_is_taken():
    """Twice the GPUs and exactly twice as fast is as good per GPU; 5 % better is needed."""
    sizes = fitting(engine(LLAMA_8B), gpu_type("H100"), most=2)
    assert fastest(sizes, lambda each: 1 / each.num_gpus).tensor_parallel == 1
    assert fastest(sizes, lambda each: 1 if each.num_gpus == 1 else 0.49).tensor_parallel == 1
    assert fastest(sizes, lambda each: 1 if each.num_gpus == 1 else 0.47).tensor_parallel == 2


def test_a_model_larger_than_a_node_stands_on_several():
    """281.2 GB + 8,192 x 229,376 = 1.9 GB on T4s of 12.7: 23 GPUs, so 6 groups of 4."""
    found = over_nodes("moe", engine(WIZARD), gpu_type("T4"), nodes(6, 4, "T4"))
    assert (found.tensor_parallel, found.num_gpus) == (4, 24)


def test_a_model_larger_than_all_nodes_is_refused_with_the_sum_and_what_it_needs():
    with pytest.raises(ConfigError) as refused:
        over_nodes("moe", engine(WIZARD), gpu_type("T4"), nodes(5, 4, "T4"))
    text = str(refused.value)
    assert "models.moe: 281.2 GB of weights + 1.9 GB of KV cache" in text
    assert "the 20 x T4 of the largest nodes have 254.4 GB; it needs 24 of them" in text
    assert "(tensor_parallel 4 x pipeline_parallel 6)" in text
