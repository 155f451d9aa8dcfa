import re

import pytest

from moaa_ray.core.model_size import PUBLISHED_CONFIGS, bytes_per_weight, published_shape, shape_of_config
from moaa_ray.errors import ConfigError


def shape(hub_id: str):
    found = published_shape(hub_id)
    assert found
    return found


def test_llama_8b_by_hand():
    """Attention 4096 x 128 x (2 x 32 + 2 x 8) = 41,943,040; MLP 3 x 4096 x 14336 = 176,160,768; norms 8,192:
    218,112,000 a layer, 32 layers 6,979,584,000; embeddings 2 x 128256 x 4096 = 1,050,673,152; last norm 4,096."""
    llama = shape("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.num_params == 6_979_584_000 + 1_050_673_152 + 4_096 == 8_030_261_248
    assert llama.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2 == 131_072


@pytest.mark.parametrize(
    ("hub_id", "num_params"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen2-72B-Instruct", 72_706_203_648),
        ("Qwen/Qwen1.5-110B-Chat", 111_209_914_368),
        ("google/gemma-2-27b-it", 27_227_128_320),
        ("google/gemma-2-9b-it", 9_241_705_984),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("alpindale/WizardLM-2-8x22B", 140_620_634_112),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23_572_403_200),
        ("mistralai/Mistral-Large-Instruct-2407", 122_610_069_504),
        ("meta-llama/Llama-3.1-405B-Instruct", 405_853_388_800),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("google/gemma-2-2b-it", 2_614_341_888),
        ("microsoft/phi-4", 14_659_507_200),
        ("Qwen/Qwen1.5-72B-Chat", 72_287_920_128),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
    ],
)
def test_counts_equal_the_published_ones(hub_id, num_params):
    """The totals of the safetensors files that the Hub shows for each model."""
    assert shape(hub_id).num_params == num_params


def test_a_mixture_of_experts_runs_two_of_eight_per_token():
    """One expert is 3 x 6144 x 16384 = 301,989,888; six idle ones in 56 layers are 101,468,602,368."""
    wizard = shape("alpindale/WizardLM-2-8x22B")
    assert wizard.num_params - wizard.num_active_params == 6 * 56 * 301_989_888
    assert wizard.num_active_params == pytest.approx(39.15e9, rel=1e-3)


def test_kv_bytes_of_a_70b_in_both_precisions():
    assert shape("meta-llama/Llama-3.1-70B-Instruct").kv_bytes_per_token() == 327_680
    assert shape("meta-llama/Llama-3.1-70B-Instruct").kv_bytes_per_token(1.0) == 163_840


def test_kv_heads_are_copied_when_there_are_fewer_than_gpus():
    assert shape("Qwen/Qwen2.5-7B-Instruct").kv_bytes_per_token(tensor_parallel=8) == 2 * 28 * 8 * 128 * 2


def test_fp8_leaves_the_embeddings_at_16_bits():
    llama = shape("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.weight_bytes(2.0) == 2 * 8_030_261_248
    assert llama.weight_bytes(1.0) == 8_030_261_248 + 1_050_673_152


def test_a_quantised_checkpoint_says_its_own_size():
    config = {
        **PUBLISHED_CONFIGS["Qwen/Qwen2.5-7B-Instruct"],
        "quantization_config": {"quant_method": "gptq", "bits": 8},
    }
    quantised = shape_of_config(config)
    assert quantised
    assert bytes_per_weight(quantised) == 1.0


def test_dtype_and_quantisation_give_the_bytes_of_a_weight():
    llama = shape("meta-llama/Llama-3.1-8B-Instruct")
    assert bytes_per_weight(llama) == 2.0
    assert bytes_per_weight(llama, dtype="float32") == 4.0
    assert bytes_per_weight(llama, quantization="fp8") == 1.0
    assert bytes_per_weight(llama, quantization="something_new") is None


def test_qwen3_and_phi3_count_their_own_way():
    """Published: Qwen3-8B 8,190,735,360 (norms of q and k, head_dim given); Phi-3-mini 3,821,079,552."""
    qwen3 = shape_of_config({
        "model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": 8, "intermediate_size": 12288, "vocab_size": 151936, "tie_word_embeddings": False,
    })  # fmt: skip
    phi3 = shape_of_config({
        "model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 3072, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 32064,
    })  # fmt: skip
    assert qwen3
    assert qwen3.num_params == 8_190_735_360
    assert phi3
    assert phi3.num_params == 3_821_079_552


def test_an_unknown_architecture_has_no_shape():
    assert shape_of_config({"model_type": "mamba2", "hidden_size": 2048}) is None
    assert published_shape("someone/some-model") is None


def test_hub_ids_are_found_in_any_case_and_with_metas_old_prefix():
    assert published_shape("meta-llama/Meta-Llama-3.1-8B-Instruct") == published_shape(
        "META-LLAMA/llama-3.1-8b-instruct"
    )


@pytest.mark.parametrize("value", [None, 0, -1, "4096", 2.5])
def test_a_size_that_is_none_is_refused_by_its_name(value):
    config = {**PUBLISHED_CONFIGS["Qwen/Qwen3-8B"], "hidden_size": value}
    with pytest.raises(ConfigError, match=re.escape(f"config.json: hidden_size = {value!r} is not a whole number")):
        shape_of_config(config)
    assert shape_of_config({**config, "model_type": "mamba2"}) is None, "nothing is known of what it must hold"


def test_a_quantisation_that_says_nothing_is_not_guessed_and_a_missing_window_is_none():
    config = PUBLISHED_CONFIGS["Qwen/Qwen3-8B"]
    assert shape_of_config({**config, "quantization_config": "awq"}) is None
    shape = shape_of_config({**config, "max_position_embeddings": None})
    assert shape
    assert shape.context_window == 0
