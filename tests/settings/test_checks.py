"""What is refused across sections and in model folders, before anything starts."""

import json
from pathlib import Path

import pytest
import yaml

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_recipe
from moaa_ray.model_folders import window_of
from moaa_ray.settings.checks import shown
from moaa_ray.settings.models import FakeModel, VllmModel

CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}


def model_folder(folder: Path, *, without: str = "", config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": json.dumps(CONFIG if config is None else config),
        "tokenizer.json": "{}",
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}),
        "model.safetensors": "",
    }
    for name, text in files.items():
        if name != without:
            (folder / name).write_text(text)
    return folder


def problems(folder: Path, *, model: dict | None = None, models: dict | None = None, **mixture) -> str:
    """What load_recipe says; empty when the recipe is fine."""
    recipe = {
        "name": "demo",
        "prompts": {"sources": [{"path": "p.jsonl"}]},
        "models": models or {"a": model or {"engine": "fake"}},
        "mixture": {"layers": [{"proposers": [{"model": "a", "max_tokens": 64}]}]}
        | {"aggregator": {"model": "a", "max_tokens": 64}}
        | mixture,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    try:
        load_recipe(path)
    except ConfigError as error:
        return str(error)
    return ""


def local(model: str = "./m", **fields) -> dict:
    return {"engine": "vllm", "model": model, **fields}


def test_a_slot_with_an_unknown_model_names_the_nearest(tmp_path):
    models = {"strong": {"engine": "fake"}, "a": {"engine": "fake"}}
    text = problems(tmp_path, models=models, aggregator={"model": "strnog"})
    assert "mixture.aggregator.model = 'strnog': no such model" in text
    assert "did you mean 'strong'? valid names: a, strong" in text
    assert "1 problem\n" in text  # that `strong` is unused follows from the slip


def test_an_empty_stop_text_is_refused(tmp_path):
    text = problems(tmp_path, aggregator={"model": "a", "stop": ["END", ""]})
    assert "mixture.aggregator.stop.1 = '': must be text that is not empty; write some, or take it out" in text


def test_models_to_swap_in_may_stand_there_unused_but_not_a_misspelt_student(tmp_path):
    assert problems(tmp_path, models={"a": {"engine": "fake"}, "spare": {"engine": "fake"}}) == ""
    models = {"a": {"engine": "fake"}, "studnet": {"engine": "fake"}}
    text = problems(tmp_path, models=models)
    assert "models.studnet: nothing uses it; did you mean 'student'?" in text
    assert problems(tmp_path, models={**models, "student": {"engine": "fake"}}) == ""


@pytest.mark.parametrize(("model", "lora"), [("hf://org/m", None), ("org/m", "http://host/lora")])
def test_weights_of_an_unknown_scheme_are_refused_before_an_engine_meets_them(tmp_path, model, lora):
    text = problems(tmp_path, model=local(model, lora=lora, context_window=4096))
    field = "models.a.lora" if lora else "models.a.model"
    assert f"{field}: weights are read from s3://, gs://" in text
    assert "hub ids are written org/name" in text


def test_a_model_folder_may_be_given_as_a_file_uri(tmp_path):
    folder = model_folder(tmp_path / "m")
    assert problems(tmp_path, model=local(f"file://{folder}")) == ""
    assert "has no config.json" in problems(tmp_path, model=local(f"file://{tmp_path}"))


def test_two_slots_with_one_label_are_refused(tmp_path):
    text = problems(tmp_path, layers=[{"proposers": [{"model": "a"}, {"model": "a"}]}])
    assert "mixture.layers.0.proposers: two proposers of one layer are called 'a'; give each its own `name`" in text


@pytest.mark.parametrize("name", ["a b", "a/b", "..", "-a", "é", "a\n"])
def test_labels_and_model_names_that_cannot_be_files_are_refused(tmp_path, name):
    as_label = problems(tmp_path, aggregator={"model": "a", "name": name})
    assert "mixture.aggregator.name = " in as_label
    assert "must be made of letters, digits" in as_label
    as_model = problems(tmp_path, models={"a": {"engine": "fake"}, name: {"engine": "fake"}})
    assert "must be made of letters, digits" in as_model


def test_max_tokens_must_stay_below_the_context_window(tmp_path):
    model = {"engine": "fake", "context_window": 512}
    text = problems(tmp_path, model=model, layers=[{"proposers": [{"model": "a", "max_tokens": 512}]}])
    assert "mixture.layers.0.proposers.0.max_tokens = 512: not below the context window of model 'a', 512" in text
    assert "lower it, e.g. to 128" in text


def test_the_aggregators_window_must_hold_every_proposal(tmp_path):
    """100 + 64 x 3 + 256 = 548 tokens: too many for 547, enough for 548."""
    layers = [{"proposers": [{"model": "a", "num_samples": 3, "max_tokens": 9}]}]
    fields = {"layers": layers, "aggregator": {"model": "a", "max_tokens": 100}}
    text = problems(tmp_path, model={"engine": "fake", "context_window": 547}, **fields)
    assert "mixture.aggregator.max_tokens = 100: 100 + 64 x 3 proposals + 256 for the rest = 548 tokens" in text
    assert "lower it to 99 or less" in text
    assert problems(tmp_path, model={"engine": "fake", "context_window": 548}, **fields) == ""


def test_a_window_too_small_for_the_proposals_alone_asks_for_fewer(tmp_path):
    text = problems(tmp_path, model={"engine": "fake", "context_window": 300})
    assert "show fewer proposals" in text


def test_a_repeated_layer_reads_its_own_proposals(tmp_path):
    """The second time round each proposer reads 4 proposals: 9 + 64 x 4 + 256 = 521."""
    layer = {"proposers": [{"model": "a", "num_samples": 4, "max_tokens": 9}]}
    models = {"a": {"engine": "fake", "context_window": 400}, "big": {"engine": "fake"}}
    aggregator = {"model": "big", "max_tokens": 9}
    assert problems(tmp_path, models=models, layers=[layer], aggregator=aggregator) == ""
    text = problems(tmp_path, models=models, layers=[layer | {"repeat": 2}], aggregator=aggregator)
    assert "mixture.layers.0.proposers.0.max_tokens = 9: 9 + 64 x 4 proposals + 256 for the rest = 521" in text


def test_an_unknown_window_is_not_judged(tmp_path):
    model = {"engine": "openai", "model": "m", "base_url": "http://h/v1"}
    assert problems(tmp_path, model=model, aggregator={"model": "a", "max_tokens": 10**6}) == ""


def test_a_local_models_window_is_read_from_its_folder(tmp_path):
    model_folder(tmp_path / "m")
    text = problems(tmp_path, model=local(), aggregator={"model": "a", "max_tokens": 2048})
    assert "mixture.aggregator.max_tokens = 2048: not below the context window of model 'a', 2048" in text


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 100, "rope_scaling": {"factor": 4.0}}, 400),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 400),
        ({"max_position_embeddings": 400, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 400),
        ({"max_position_embeddings": 800, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 800),
        ({"max_position_embeddings": 800, "rope_scaling": {"type": "su", "factor": 8.0}}, 800),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default"}}, 100),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_the_window_of_a_folder(tmp_path, config, window):
    model_folder(tmp_path / "m", config=config)
    assert window_of(VllmModel(engine="vllm", model="m"), tmp_path) == window


def test_the_recipes_window_comes_before_the_folders(tmp_path):
    model_folder(tmp_path / "m")
    assert window_of(VllmModel(engine="vllm", model="m", context_window=64), tmp_path) == 64
    assert window_of(FakeModel(engine="fake"), tmp_path) == 8192


def test_min_proposals_above_what_a_layer_gives_is_refused(tmp_path):
    text = problems(tmp_path, min_proposals=2)
    assert "mixture.min_proposals = 2: above the 1 proposals that layers.0 gives" in text
    assert "set it to 1 or less" in text


def test_equal_samples_at_temperature_0_are_refused(tmp_path):
    text = problems(tmp_path, layers=[{"proposers": [{"model": "a", "temperature": 0, "num_samples": 2}]}])
    assert "mixture.layers.0.proposers.0.temperature = 0 with num_samples = 2: all samples would be equal" in text
    assert "set num_samples to 1" in text


def test_an_unknown_fault_is_refused(tmp_path):
    text = problems(tmp_path, model={"engine": "fake", "faults": {"boom": "hagn"}})
    assert "models.a.faults.boom = 'hagn': must be one of error, flaky, refuse" in text
    assert "did you mean 'hang'?" in text


def test_a_whole_local_folder_is_fine_by_any_of_its_names(tmp_path):
    folder = model_folder(tmp_path / "m")
    for name in ("./m", "m", "../" + tmp_path.name + "/m", str(folder)):
        assert problems(tmp_path, model=local(name)) == ""


@pytest.mark.parametrize(
    ("without", "lack", "way_out"),
    [
        ("config.json", "has no config.json", "`save_pretrained` wrote"),
        ("tokenizer.json", "has no tokenizer (tokenizer.json", "copy the tokenizer's files"),
        ("tokenizer_config.json", "has no chat template", "or set chat_template to a file"),
        ("model.safetensors", "has no *.safetensors weights", "copy them"),
    ],
)
def test_what_a_model_folder_lacks_is_named(tmp_path, without, lack, way_out):
    folder = model_folder(tmp_path / "m", without=without)
    text = problems(tmp_path, model=local())
    assert f"models.a.model = './m': {folder} {lack}" in text
    assert way_out in text
    assert "1 problem\n" in text


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_in_a_file_of_its_own_is_found(tmp_path, name):
    folder = model_folder(tmp_path / "m", without="tokenizer_config.json")
    (folder / name).write_text("{}")
    assert problems(tmp_path, model=local()) == ""


def test_the_recipes_own_chat_template_stands_in_for_the_folders(tmp_path):
    model_folder(tmp_path / "m", without="tokenizer_config.json")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert problems(tmp_path, model=local(chat_template="t.jinja")) == ""
    text = problems(tmp_path, model=local(chat_template="u.jinja"))
    assert f"models.a.chat_template: {shown(f'{tmp_path}/u.jinja')} is no local file" in text


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt", "weights.pth"])
def test_pickled_weights_alone_are_refused_and_beside_safetensors_ignored(tmp_path, name):
    folder = model_folder(tmp_path / "m")
    (folder / name).write_text("")
    assert problems(tmp_path, model=local()) == ""
    (folder / "model.safetensors").unlink()
    text = problems(tmp_path, model=local())
    assert f"{folder} has only pickled weights, which can run code; convert them with `save_pretrained`" in text


def test_a_model_that_brings_its_own_code_is_refused(tmp_path):
    model_folder(tmp_path / "m", config=CONFIG | {"auto_map": {"AutoModel": "evil.Model"}})
    text = problems(tmp_path, model=local())
    assert "auto_map in config.json), which is never run" in text
    assert "remove auto_map" in text


@pytest.mark.parametrize("content", ["not json", "[]", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json_mapping_is_refused(tmp_path, content):
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text(content, encoding="latin-1")
    assert f"{folder} has a config.json that is no JSON mapping; copy the folder anew" in problems(
        tmp_path, model=local()
    )


@pytest.mark.parametrize(
    "name", ["./no", "../no", "/no/such", "~/no-such-x", "a/b/c", "weights.gguf", "no.safetensors"]
)
def test_a_local_model_that_is_not_there_names_the_absolute_path(tmp_path, name):
    text = problems(tmp_path, model=local(name))
    assert f"models.a.model = {name!r}: /" in text
    assert "does not exist; correct it: relative paths count from the recipe's folder" in text


def test_a_file_in_place_of_a_model_folder_is_refused(tmp_path):
    (tmp_path / "m").write_text("")
    assert f"{tmp_path}/m is not a folder" in problems(tmp_path, model=local())


@pytest.mark.parametrize("name", ["org/name", "name", "s3://bucket/model", "gs://b/x.bin"])
def test_hub_ids_and_uris_are_not_looked_for_on_disk(tmp_path, name):
    assert problems(tmp_path, model=local(name)) == ""


def test_an_adapter_needs_its_config_and_safetensors(tmp_path):
    lora = tmp_path / "l"
    assert f"models.a.lora: {lora} does not exist" in problems(tmp_path, model=local("org/m", lora="l"))
    lora.mkdir()
    (lora / "adapter_model.bin").write_text("")
    text = problems(tmp_path, model=local("org/m", lora="l"))
    assert f"models.a.lora: {lora} has no adapter_config.json; give the folder that PEFT" in text
    assert f"models.a.lora: {lora} has only pickled weights" in text
    (lora / "adapter_config.json").write_text("{}")
    (lora / "adapter_model.safetensors").write_text("")
    assert problems(tmp_path, model=local("org/m", lora="l")) == ""


def test_folders_and_windows_are_checked_in_a_recipe_that_is_wrong_elsewhere(tmp_path):
    models = {"a": local(), "b": {"engine": "vlm"}}
    text = problems(tmp_path, models=models, layers=[{"proposers": [{"model": "b"}, {"model": "c"}]}])
    for part in ("models.b.engine = 'vlm'", "did you mean 'vllm'?", "proposers.1.model = 'c'", "does not exist"):
        assert part in text
