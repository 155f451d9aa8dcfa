"""The recipe's own rules: defaults, frozen sections, and what single fields refuse."""

import pytest
from pydantic import ValidationError

from moaa_ray.recipe import Recipe
from moaa_ray.settings.mixture import LayerConfig, MixtureConfig, ProposerConfig, SlotConfig
from moaa_ray.settings.models import OpenaiModel, ReplicaRange, VllmModel


def layer(*names: str, **fields) -> LayerConfig:
    return LayerConfig(proposers=[ProposerConfig(model=name) for name in names], **fields)


def test_a_slot_is_called_by_its_name_or_else_its_model():
    assert SlotConfig(model="a").label == "a"
    assert SlotConfig(model="a", name="b").label == "b"


def test_depth_counts_repeats_and_stacked_unrolls_them():
    mixture = MixtureConfig(layers=[layer("a", "b", repeat=2), layer("c")], aggregator=SlotConfig(model="a"))
    assert mixture.depth == 3
    assert [[slot.label for slot in slots] for slots in mixture.stacked()] == [["a", "b"], ["a", "b"], ["c"]]


def test_num_proposals_counts_samples():
    slots = [ProposerConfig(model="a", num_samples=3), ProposerConfig(model="b")]
    assert LayerConfig(proposers=slots).num_proposals == 4


def test_a_recipe_cannot_be_changed():
    slot = SlotConfig(model="a")
    with pytest.raises(ValidationError):
        slot.model = "b"  # pyright: ignore


def test_an_autoscaling_range_must_be_ordered():
    with pytest.raises(ValidationError, match="min = 3 is above max = 2; swap them"):
        ReplicaRange(min=3, max=2)


@pytest.mark.parametrize("key", ["sk-123", "$KEY", "${KEY}x", "${1A}", "${KEY", "${KEY}\n"])
def test_only_a_reference_is_taken_as_an_api_key(key):
    with pytest.raises(ValidationError, match=r"write \$\{NAME\}"):
        OpenaiModel(engine="openai", model="m", base_url="http://h/v1", api_key=key)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h", "http://", "http://u:p@h/v1", "http://h/v1?k=1", "http://h h"]
)
def test_an_endpoint_is_a_plain_http_url(url):
    with pytest.raises(ValidationError, match=r"write it as http://host:8000/v1|use api_key"):
        OpenaiModel(engine="openai", model="m", base_url=url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host:0/v1", "port is no number from 1 to 65535; write it as http://host:8000/v1"),
        ("http://host:65536/v1", "port is no number"),
        ("http://host:/v1", "port is no number"),
        ("http://host:80a/v1", "port is no number"),
        ("http://host:８０/v1", "port is no number"),
        ("http://[::1]:99999", "port is no number"),
        ("http://:8000/v1", "host is no name or IP address; write it as"),
        ("http://ho..st/v1", "host is no name"),
        ("http://-host/v1", "host is no name"),
        ("http://a,b/v1", "host is no name"),
        ("http://127.0.0.256/v1", "host is no name"),
        ("http://[::1/v1", "host is no name"),
        ("http://[::1]x/v1", "host is no name"),
        ("http://[1.2.3.4]/v1", "host is no name"),
        ("http://::1:8000/v1", "host is no name"),
        ("http://" + "a" * 64, "host is no name"),
        ("http://" + "a." * 100_000, "host is no name"),
        ("HTTP//host", "does not start with http:// or https://"),
        ("file:///v1", "does not start with http:// or https://"),
        ("https://host/v1/chat/completions", "end it before them, as http://host:8000/v1"),
        ("https://host/v1/models/", "end it before them"),
    ],
)
def test_scheme_host_port_and_path_of_an_endpoint_are_checked(url, said):
    with pytest.raises(ValidationError, match=said):
        OpenaiModel(engine="openai", model="m", base_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "https://api.example.org./v1/",
        "http://vllm_server:1",
        "http://localhost:65535",
        "https://bücher.example/v1",
        "https://a1.svc.cluster.local/gateway/v1beta/openai",
    ],
)
def test_ordinary_addresses_of_endpoints_pass(url):
    assert OpenaiModel(engine="openai", model="m", base_url=url).base_url == url


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("max_model_len", "is the field context_window"),
        ("tensor_parallel_size", "is the field tensor_parallel"),
        ("trust_remote_code", "take it out"),
        ("load_format", "take it out"),
        ("hf_token", "set it in the workers' environment"),
    ],
)
def test_engine_args_cannot_bypass_the_recipe(key, way_out):
    with pytest.raises(ValidationError, match=f"{key} .*{way_out}"):
        VllmModel(engine="vllm", model="m", engine_args={key: "x"})


@pytest.mark.parametrize("labels", [{"pool": "!big"}, {"pool": "in(a,b)"}, {"": "big"}, {"pool": ""}, {"a b": "c"}])
def test_labels_that_ray_would_not_take_as_plain_ones_are_refused(labels):
    with pytest.raises(ValidationError, match="pattern"):
        VllmModel(engine="vllm", model="m", node_labels=labels)


def test_labels_may_have_a_prefix():
    labels = {"ray.io/accelerator-type": "H100", "pool": "big-gpus"}
    assert VllmModel(engine="vllm", model="m", node_labels=labels).node_labels == labels


def test_engine_args_of_other_names_pass():
    args = {"enforce_eager": True, "max_num_batched_tokens": 512}
    assert VllmModel(engine="vllm", model="m", engine_args=args).engine_args == args


def test_every_field_of_the_top_level_but_plain_sections_is_documented():
    undocumented = [name for name, field in Recipe.model_fields.items() if not field.description]
    plain = {"name", "seed", "prompts", "models", "mixture", "generate", "ray", "plan", "student", "sft", "dpo"}
    plain |= {"run", "filters", "sample", "judge", "evaluate", "serve"}
    assert set(undocumented) <= plain
