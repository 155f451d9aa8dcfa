"""Students loaded from Hugging Face folders have the weights that transformers loads, and nothing else is accepted."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from moaa_ray.errors import ConfigError  # noqa: E402
from moaa_ray.training.weight_files import stored_shapes  # noqa: E402
from moaa_ray.training.weights import build_student, check_weights, load_weights, plain_name, whole_weights  # noqa: E402
from tests.training.processes import make_strategy, on_workers, save_model, state_of  # noqa: E402
from tests.training.students import FAMILIES, make_documents, make_model, plain_logprobs  # noqa: E402


def wanted_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def assert_same_weights(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, *, drop: str = "", add: dict | None = None) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop} | (add or {})
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_that_transformers_loads(family, tmp_path):
    save_model(tmp_path, family)
    strategy = make_strategy("single", tmp_path, activation_checkpointing=True)
    assert_same_weights(dict(strategy.full_parameters()), wanted_weights(tmp_path))
    assert all(p.dtype == torch.float32 for p in strategy.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_student_computes_what_the_model_does(family, tmp_path):
    """Buffers (rotary frequencies, gemma's scale) are in no file and must be right all the same."""
    from moaa_ray.training.microbatch import lay_out

    save_model(tmp_path, family)
    documents = make_documents([40])
    wanted = plain_logprobs(make_model(family), documents[0])
    got = make_strategy("single", tmp_path).model(lay_out(documents))
    assert (got - wanted).abs().max() < 3e-5


def test_files_in_shards_are_read_by_their_index(tmp_path):
    save_model(tmp_path, shard="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    student = build_student(tmp_path)
    load_weights(student, tmp_path)
    assert_same_weights({plain_name(n): p for n, p in student.named_parameters()}, wanted_weights(tmp_path))


def test_bfloat16_files_become_float32_masters(tmp_path):
    make_model("llama").bfloat16().save_pretrained(tmp_path)
    strategy = make_strategy("single", tmp_path)
    assert_same_weights(dict(strategy.full_parameters()), wanted_weights(tmp_path))
    assert next(strategy.model.parameters()).dtype == torch.float32


def test_a_student_has_no_storage_before_it_is_filled(tmp_path):
    save_model(tmp_path)
    student = build_student(tmp_path)
    assert all(p.is_meta for p in student.parameters())
    assert not any(b.is_meta for b in student.buffers())
    num_bytes = sum(4 * p.numel() for p in student.parameters())
    assert load_weights(student, tmp_path) == num_bytes
    assert stored_shapes(tmp_path)["model.norm.weight"] == (32,)


def test_names_are_the_models_own_whatever_is_wrapped_around_them():
    wanted = "model.layers.0.mlp.up_proj.weight"
    assert plain_name(f"model.{wanted}") == wanted
    assert plain_name("module.model.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight") == wanted
    assert plain_name("model.lm_head.weight") == "lm_head.weight"


def _load_and_count(folder: str) -> tuple[dict[str, torch.Tensor], int, int]:
    from moaa_ray.training.strategies.base import Numerics
    from moaa_ray.training.strategies.fsdp2 import Fsdp2
    from tests.training.processes import world

    strategy = Fsdp2(build_student(folder), world(), Numerics())
    num_bytes = load_weights(strategy.model, folder)
    held = sum(p.to_local().untyped_storage().nbytes() for p in strategy.model.parameters())
    return state_of(strategy), num_bytes, held


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", *(pytest.param(name, marks=pytest.mark.long) for name in ("mistral", "gemma2"))]
)
def test_sharded_workers_fill_their_slices_only(family, tmp_path):
    """193 words over two workers is uneven: 97 and 96 rows; every other first dimension (32, 48, 16, 8) is even."""
    save_model(tmp_path, family)
    wanted = wanted_weights(tmp_path)
    total = sum(4 * p.numel() for p in wanted.values())
    uneven = sum(4 * p.shape[1] for p in wanted.values() if p.shape[0] == 193)
    for (weights, num_bytes, held), expected in zip(
        on_workers(2, _load_and_count, str(tmp_path)), ((total + uneven) // 2, (total - uneven) // 2), strict=True
    ):
        assert_same_weights(weights, wanted)
        assert num_bytes == expected
        assert held <= (total + uneven) // 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (
            lambda folder: edit_config(folder, auto_map={"AutoModelForCausalLM": "x.Y"}),
            "auto_map, which would run code",
        ),
        (lambda folder: edit_config(folder, quantization_config={"bits": 4}), "needs unquantised weights"),
        (lambda folder: edit_config(folder, model_type="nonesuch"), "cannot build it"),
        (lambda folder: edit_config(folder, num_attention_heads=None), "cannot build it: .*num_attention_heads"),
        (lambda folder: edit_config(folder, vocab_size=200), r"embed_tokens.weight has shape \(193, 32\), .*200, 32"),
        (lambda folder: edit_tensors(folder, drop="model.norm.weight"), "has no tensor for model.norm.weight"),
        (lambda folder: edit_tensors(folder, add={"x.scale": torch.ones(1)}), "does not use: x.scale"),
        (
            lambda folder: edit_tensors(folder, add={"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "model.norm.weight is stored as I8, want F64, F32, F16, BF16: training needs unquantised weights",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x09" * 64), "cannot be read"),
    ],
)
def test_a_folder_that_is_not_a_plain_model_is_refused(change, said, tmp_path):
    save_model(tmp_path)
    change(tmp_path)
    with pytest.raises(ConfigError, match=said):
        check_weights(build_student(tmp_path), tmp_path)


def test_weights_are_checked_before_they_are_loaded(tmp_path):
    save_model(tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"does not use: model\.layers\.1\."):
        load_weights(build_student(tmp_path), tmp_path)


def test_weights_that_are_not_finite_are_refused_instead_of_trained_on(tmp_path):
    save_model(tmp_path)
    edit_tensors(tmp_path, add={"model.norm.weight": torch.tensor([*[1.0] * 31, float("nan")])})
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds values that are not finite; copy the model once"):
        load_weights(build_student(tmp_path), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds values that are not finite"):
        list(whole_weights(build_student(tmp_path), tmp_path))


def test_pickled_weights_are_never_read(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"as pickles \(pytorch_model.bin\), which can run code"):
        build_student(tmp_path)


@pytest.mark.parametrize("file", [3, ["model.safetensors"], None])
def test_an_index_that_names_no_file_is_refused(file, tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file, "y": "z"}}))
    with pytest.raises(ConfigError, match="instead of the name of a file"):
        build_student(tmp_path)


def test_an_index_that_leaves_the_folder_is_refused(tmp_path):
    save_model(tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": "../model/model.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="which is not in the folder"):
        build_student(tmp_path / "model")


def test_old_rotary_buffers_and_a_copy_of_the_tied_head_may_be_there(tmp_path):
    save_model(tmp_path, "qwen3")
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    extra = {"lm_head.weight": embedding.clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit_tensors(tmp_path, add=extra)
    strategy = make_strategy("single", tmp_path)
    assert torch.equal(dict(strategy.full_parameters())["model.embed_tokens.weight"], embedding)


@pytest.mark.parametrize("part", [slice(None), slice(70, 80)])
def test_a_tied_head_that_differs_from_the_embedding_is_refused(part, tmp_path):
    save_model(tmp_path, "qwen3")
    head = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone()
    head[part] = 0
    edit_tensors(tmp_path, add={"lm_head.weight": head})
    with pytest.raises(ConfigError, match=r"ties the output layer to the embedding, but lm_head\.weight differs"):
        load_weights(build_student(tmp_path), tmp_path)
