"""An exported folder is loaded by transformers as any other model, with the weights that were trained."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from moaa_ray.data.store import open_store  # noqa: E402
from moaa_ray.demo.tiny import make_tiny_model  # noqa: E402
from moaa_ray.errors import StageError  # noqa: E402
from moaa_ray.training.export import export, plan_shards, verify_export  # noqa: E402
from tests.training.processes import make_strategy, on_workers, save_model, take_steps  # noqa: E402
from tests.training.students import make_model  # noqa: E402

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79]


def export_to(strategy, folder, source: Path | str, *, dtype: torch.dtype = torch.float32, **options) -> None:
    export(
        strategy, str(folder), source_folder=source, dtype=dtype, chat_template="{{ x }}", card="# A card", **options
    )


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(torch.tensor([TOKENS])).logits[0].float()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
def test_an_untrained_student_comes_out_as_it_went_in(family, tmp_path):
    source = save_model(tmp_path / "source", family)
    strategy = make_strategy("single", source, activation_checkpointing=True)
    export_to(strategy, tmp_path / "out", source)
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    got, wanted = load_file(tmp_path / "out" / "model.safetensors"), load_file(source / "model.safetensors")
    assert got.keys() == wanted.keys()  # a tied output layer is in neither
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_trained_student_is_verified_by_its_log_probabilities(family, tmp_path):
    source = save_model(tmp_path / "source", family)
    strategy = make_strategy("single", source)
    take_steps(strategy, 0, 3)
    export_to(strategy, tmp_path / "out", source)
    assert verify_export(strategy, f"{tmp_path}/out", TOKENS) < 1e-4
    assert verify_export(strategy, str(source), TOKENS) > 1e-2
    assert strategy.model.training


def test_bfloat16_is_a_rounding_of_the_masters(tmp_path):
    source = save_model(tmp_path / "source")
    strategy = make_strategy("single", source)
    export_to(strategy, tmp_path / "out", source, dtype=torch.bfloat16)
    wanted = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert next(strategy.model.parameters()).dtype == torch.float32


def test_config_names_the_model_and_nothing_of_ours(tmp_path):
    source = save_model(tmp_path / "source", "qwen3")
    export_to(make_strategy("single", source), tmp_path / "out", source)
    text = (tmp_path / "out" / "config.json").read_text()
    assert "moaa" not in text
    wanted = json.loads((source / "config.json").read_text())
    assert json.loads(text) == wanted | {"dtype": "float32"}
    assert wanted["architectures"] == ["Qwen3ForCausalLM"]


def test_large_models_come_in_shards_with_an_index(tmp_path):
    source = save_model(tmp_path / "source")
    export_to(make_strategy("single", source), tmp_path / "out", source, max_shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    parameters = dict(make_model("llama").named_parameters())
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in parameters.values())
    assert index["weight_map"].keys() == parameters.keys()
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    make_strategy("single", tmp_path / "out")


def test_shards_hold_at_most_their_size_and_larger_tensors_alone():
    """float32: a is 400 bytes, b 40, c 40, d 40. With 100 bytes a file: a | b c | d."""
    shapes = {"a": (10, 10), "b": (10,), "c": (10,), "d": (10,)}
    shards = plan_shards(list(shapes), shapes, torch.float32, 100)
    assert {file[:11]: list(layouts) for file, layouts in shards.items()} == {
        "model-00001": ["a"],
        "model-00002": ["b", "c"],
        "model-00003": ["d"],
    }
    assert list(plan_shards(["b", "c"], shapes, torch.float32, 100)) == ["model.safetensors"]


def test_tokenizer_generation_and_licence_come_along_and_the_template_is_the_trained_one(tmp_path):
    source = make_tiny_model(tmp_path / "source", seed=1)
    (source / "LICENSE").write_text("as you like")
    (source / "optimizer.json").write_text("{}")
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": "old", "auto_map": {}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    strategy = make_strategy("single", source)
    export_to(strategy, tmp_path / "out", source)
    out = tmp_path / "out"
    assert (out / "README.md").read_text() == "# A card"
    assert (out / "LICENSE").read_text() == "as you like"
    assert not (out / "optimizer.json").exists()
    assert (out / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text()).keys() == settings.keys() - {
        "chat_template",
        "auto_map",
    }
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ x }}"
    assert tokenizer.encode("Hello there") == AutoTokenizer.from_pretrained(source).encode("Hello there")


@pytest.mark.parametrize("has_generation_config", [True, False])
def test_generation_stops_at_the_end_of_a_turn_also_where_the_student_did_not_stop_there(
    has_generation_config, tmp_path
):
    source = save_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").unlink(missing_ok=True)
    if has_generation_config:
        (source / "generation_config.json").write_text('{"eos_token_id": [7, 8], "top_p": 0.5}')
    strategy = make_strategy("single", source)
    export_to(strategy, tmp_path / "out", source, end_token=9)
    told = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert told.eos_token_id == ([7, 8, 9] if has_generation_config else [7, 9])
    assert told.top_p == (0.5 if has_generation_config else None)
    export_to(strategy, tmp_path / "same", source, end_token=7)
    assert (tmp_path / "same" / "generation_config.json").exists() == has_generation_config


def test_an_older_export_is_replaced_and_nothing_else_is_left(tmp_path):
    source = save_model(tmp_path / "source")
    strategy = make_strategy("single", source)
    (tmp_path / "models" / ".out.partial").mkdir(parents=True)
    (tmp_path / "models" / ".out.partial" / "left.over").write_text("of a kill")
    for size in (20_000, 10**9):
        export_to(strategy, tmp_path / "models" / "out", source, max_shard_bytes=size)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["out"]
    names = sorted(path.name for path in (tmp_path / "models" / "out").iterdir())
    assert names == ["README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"]


def test_an_object_store_gets_the_same_files(tmp_path):
    source = save_model(tmp_path / "source")
    strategy = make_strategy("single", source)
    export_to(strategy, tmp_path / "out", source)
    store = open_store("memory://test-export/models/sft")
    for size in (20_000, 10**9):
        export_to(strategy, "memory://test-export/models/sft", source, max_shard_bytes=size)
    assert store.list() == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all(store.read(path) == (tmp_path / "out" / path).read_bytes() for path in store.list())


def test_a_folder_that_cannot_be_written_leaves_the_older_one(tmp_path):
    source = save_model(tmp_path / "source")
    strategy = make_strategy("single", source)
    (tmp_path / "models").mkdir()
    export_to(strategy, tmp_path / "models" / "out", source)
    (tmp_path / "models" / ".out.partial").write_text("in the way")
    with pytest.raises(StageError, match=r"\.out\.partial.*run the same command again"):
        export_to(strategy, tmp_path / "models" / "out", source)
    assert torch.equal(logits(tmp_path / "models" / "out"), logits(source))


def _train_and_export(name: str, source: str, folder: str) -> float:
    strategy = make_strategy(name, source, activation_checkpointing=True)
    take_steps(strategy, 0, 3)
    export_to(strategy, folder, source, max_shard_bytes=20_000)
    return verify_export(strategy, folder, TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param("llama", marks=pytest.mark.long), pytest.param("qwen3", marks=pytest.mark.long), "gemma2"]
)
def test_sharded_students_are_exported_whole(family, tmp_path):
    source = str(save_model(tmp_path / "source", family))
    first, second = on_workers(2, _train_and_export, "fsdp2", source, str(tmp_path / "two"))
    assert first == second < 1e-4
    assert _train_and_export("single", source, str(tmp_path / "one")) < 1e-4
    assert (logits(tmp_path / "two") - logits(tmp_path / "one")).abs().max() < 1e-3


def _export_in_vain(source: str, folder: str) -> str:
    try:
        export_to(make_strategy("fsdp2", source), folder, source)
    except StageError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_all_workers_hear_of_an_export_that_cannot_be_written(tmp_path):
    source = save_model(tmp_path / "source")
    (tmp_path / ".out.partial").write_text("in the way")
    first, second = on_workers(2, _export_in_vain, str(source), str(tmp_path / "out"))
    assert first == second != ""
