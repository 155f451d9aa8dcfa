"""Operations by hand."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.training.flops import Shape, peak_flops, shape_of, step_flops
from tests.training.students import make_model


def test_blocks_logits_and_attention_are_counted_once_each():
    shape = Shape(num_block_weights=100, vocabulary=10, width=4, num_layers=2, attention_width=8)
    # Blocks 6 x 100 x 5 tokens; logits 6 x 10 x 4 x 3 targets; attention 6 x 2 x 8 x (3 x 3 + 2 x 2).
    assert step_flops(shape, [(3, 3), (2, 2)], 3) == 3000 + 720 + 1248


def test_frozen_weights_cost_forward_and_the_gradient_of_what_goes_in():
    frozen = Shape(
        num_block_weights=100, num_frozen_weights=90, is_head_frozen=True,
        vocabulary=10, width=4, num_layers=2, attention_width=8,
    )  # fmt: skip
    assert step_flops(frozen, [(3, 3), (2, 2)], 3) == (4 * 90 + 6 * 10) * 5 + 4 * 10 * 4 * 3 + 1248


def test_a_shared_prompt_is_counted_once():
    shape = Shape(num_block_weights=100, vocabulary=10, width=4, num_layers=2, attention_width=8)
    # 3 tokens of prompt and 2 of a completion, then 1 token that sees the prompt: 25 + 1 x (3 + 4) products of tokens.
    assert step_flops(shape, [(5, 5), (1, 4)], 0) == 6 * 100 * 6 + 6 * 2 * 8 * (25 + 7)


def test_the_shape_of_a_model_leaves_out_embeddings_and_head():
    shape = shape_of(make_model("llama"))
    # A layer: q and o 32 x 32, k and v 32 x 16, three 32 x 48, two norms of 32.
    assert shape.num_block_weights == 2 * (2 * 1024 + 2 * 512 + 3 * 1536 + 64)
    assert (shape.vocabulary, shape.width, shape.num_layers, shape.attention_width) == (193, 32, 2, 32)


def test_gpus_are_known_by_a_word_of_their_name():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert (peak_flops("NVIDIA A10"), peak_flops("NVIDIA A10G")) == (125e12, 70e12)
    assert (peak_flops("NVIDIA L40S"), peak_flops("NVIDIA L4")) == (362e12, 121e12)
    for unknown in ("", "NVIDIA L40", "NVIDIA RTX A1000"):
        assert peak_flops(unknown) is None
