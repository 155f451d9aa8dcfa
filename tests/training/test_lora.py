"""Adapters: they start as nothing, only they are trained and kept, and merged they are a model like any other."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from moaa_ray.errors import ConfigError  # noqa: E402
from moaa_ray.training.checkpoint import Checkpoints  # noqa: E402
from moaa_ray.training.export import export, verify_export  # noqa: E402
from moaa_ray.training.loop import train  # noqa: E402
from moaa_ray.training.lora import LoraLinear, LoraSettings, adapters_off, is_adapter  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World  # noqa: E402
from moaa_ray.training.strategies.build import build_strategy  # noqa: E402
from tests.training.jobs import make_job, make_student, train_until_killed  # noqa: E402
from tests.training.processes import (  # noqa: E402
    DOCUMENTS,
    assert_equal_states,
    make_strategy,
    on_workers,
    save_model,
    state_of,
    take_steps,
    world,
)
from tests.training.students import FAMILIES  # noqa: E402

LORA = LoraSettings(rank=4, alpha=8.0, seed=1)
BATCH = lay_out(DOCUMENTS[:2])
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79]


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model")


def adapted(folder, name: str = "single", lora: LoraSettings = LORA, **numerics):
    return build_strategy(name, str(folder), world(), Numerics(**numerics), lora=lora)


def logprobs(strategy) -> torch.Tensor:
    strategy.model.eval()
    with torch.no_grad(), strategy.microbatch(is_last=True):
        return strategy.model(BATCH)


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_the_loss_is_that_of_the_student(family, tmp_path):
    folder = save_model(tmp_path, family)
    assert torch.equal(logprobs(adapted(folder)), logprobs(make_strategy("single", folder)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapters_change_and_only_they_have_optimizer_state(folder, checkpointing):
    strategy = adapted(folder, activation_checkpointing=checkpointing)
    before = {name: p.detach().clone() for name, p in strategy.named_parameters()}
    take_steps(strategy, 0, 3)
    changed = {name for name, p in strategy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if is_adapter(name)}
    assert len(changed) == 2 * 7 * 2  # A and B of seven linear layers in each of two decoder layers
    assert len(strategy.optimizer.state) == len(changed)


def test_switched_off_the_student_is_the_reference_also_after_training(folder):
    strategy, wanted = adapted(folder), logprobs(make_strategy("single", folder))
    take_steps(strategy, 0, 3)
    assert not torch.equal(logprobs(strategy), wanted)
    with adapters_off(strategy.model):
        assert torch.equal(logprobs(strategy), wanted)
    assert not torch.equal(logprobs(strategy), wanted)


def test_named_targets_alone_get_adapters_and_others_are_refused(folder):
    strategy = adapted(folder, lora=replace(LORA, targets=("q_proj", "down_proj")))
    names = {name.split(".")[-2] for name, p in strategy.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "down_proj"}
    with pytest.raises(ConfigError) as caught:
        adapted(folder, lora=replace(LORA, targets=("q_proj", "query")))
    assert str(caught.value) == (
        "lora.targets = query: no linear layer of the decoder layers has this name, there are down_proj, gate_proj, "
        "k_proj, o_proj, q_proj, up_proj, v_proj; name some of these, or leave it out for all"
    )


def test_deepspeed_is_refused(folder):
    with pytest.raises(ConfigError, match="lora with strategy = deepspeed is not supported; choose fsdp2"):
        adapted(folder, "deepspeed")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_merged_it_is_a_model_like_any_other(family, tmp_path):
    folder = save_model(tmp_path / "model", family)
    strategy = adapted(folder, activation_checkpointing=True)
    take_steps(strategy, 0, 3)
    export_to(strategy, tmp_path / "out", folder)
    assert verify_export(strategy, f"{tmp_path}/out", TOKENS) < 1e-4
    assert verify_export(strategy, str(folder), TOKENS) > 1e-2
    got, base = (load_file(place / "model.safetensors") for place in (tmp_path / "out", folder))
    assert got.keys() == base.keys()
    unchanged = {name for name in base if torch.equal(got[name], base[name])}
    assert unchanged == {name for name in base if "_proj" not in name}


def export_to(strategy, out: Path, source: Path) -> None:
    options = {"dtype": torch.float32, "chat_template": "{{ x }}", "card": "# A card"}
    export(strategy, str(out), source_folder=source, lora=LORA, **options)


def test_in_bfloat16_the_frozen_weights_take_two_bytes_and_adapters_four(folder):
    strategy = adapted(folder, is_bf16=True)
    take_steps(strategy, 0, 2)
    dtypes = {is_adapter(name): p.dtype for name, p in strategy.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    with adapters_off(strategy.model):
        assert (logprobs(strategy) - logprobs(make_strategy("single", folder))).abs().max() < 0.3


def test_dropout_is_of_training_only(folder):
    strategy, plain = adapted(folder, lora=replace(LORA, dropout=0.5)), adapted(folder)
    take_steps(plain, 0, 2)
    with torch.no_grad():
        for (_, p), (_, other) in zip(strategy.named_parameters(), plain.named_parameters(), strict=True):
            p.copy_(other)
    assert torch.equal(logprobs(strategy), logprobs(plain))
    strategy.model.train()
    assert not torch.equal(strategy.model(BATCH), plain.model(BATCH))


def test_the_arithmetic_is_that_of_peft(folder, tmp_path):
    peft = pytest.importorskip("peft")
    strategy = adapted(folder)
    take_steps(strategy, 0, 3)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    ours = {name: p for name, p in strategy.named_parameters() if is_adapter(name)}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                layer, letter = name.removeprefix("base_model.model.").split(".lora_")
                p.copy_(ours.pop(f"{layer}.lora_{letter[0].lower()}"))
        assert not ours
        ids = torch.tensor([TOKENS])
        wanted = theirs(ids).logits
        export_to(strategy, tmp_path / "out", folder)
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        assert (got - wanted).abs().max() < 1e-4
        merged = theirs.merge_and_unload().state_dict()
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all((exported[name] - merged[name]).abs().max() < 1e-6 for name in exported)


def run(uri: str, name: str, folder: str, first: int, last: int) -> dict[str, torch.Tensor]:
    """Steps first..last-1 from the newest checkpoint, if there is one, and a checkpoint at the end: its state."""
    torch.manual_seed(0)
    strategy = adapted(folder, name)
    checkpoints = Checkpoints(uri, fingerprint={"seed": "1"})
    found = checkpoints.newest()
    if found is not None:
        checkpoints.load(found, strategy)
    take_steps(strategy, first, last)
    checkpoints.save(last, strategy, {}, is_async=False)
    return state_of_adapters(strategy)


def state_of_adapters(strategy) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state_of(strategy).items() if ".lora_" in name}


def test_a_run_that_was_cut_off_ends_bit_equal_and_its_checkpoint_holds_adapters_alone(tmp_path, folder):
    unbroken = run(str(tmp_path / "a"), "single", str(folder), 0, 6)
    run(str(tmp_path / "b"), "single", str(folder), 0, 3)
    (file,) = (tmp_path / "b").rglob("*.safetensors")
    assert all(".lora_" in name for name in load_file(file))
    assert_equal_states(run(str(tmp_path / "b"), "single", str(folder), 3, 6), unbroken)


def moved(uri: str, folder: str, names: tuple[str, str]) -> tuple[dict, dict]:
    """Adapters after six steps, unbroken with the first strategy, and after three of it and three of the second."""
    unbroken = run(f"{uri}/a", names[0], folder, 0, 6)
    run(f"{uri}/b", names[0], folder, 0, 3)
    return unbroken, run(f"{uri}/b", names[1], folder, 3, 6)


@pytest.mark.slow
def test_over_two_workers_a_run_that_was_cut_off_ends_bit_equal_too(tmp_path, folder):
    for number, name in enumerate(("fsdp2", "ddp")):
        unbroken, resumed = on_workers(2, moved, f"{tmp_path}/{number}", str(folder), (name, name))[0]
        assert_equal_states(resumed, unbroken)
        alone = run(f"{tmp_path}/{number}/alone", "single", str(folder), 0, 6)
        assert_equal_states(resumed, alone, within=2e-3)


@pytest.mark.slow
def test_fsdp2_in_bfloat16_trains_adapters_and_exports_what_single_does(tmp_path, folder):
    losses = on_workers(2, bf16_losses, str(folder), "fsdp2", f"{tmp_path}/out")[0]
    assert losses == pytest.approx(bf16_losses(str(folder), "single", f"{tmp_path}/alone"), rel=2e-2)


def bf16_losses(folder: str, name: str, out: str) -> list[float]:
    strategy = adapted(folder, name, is_bf16=True)
    losses = [result.loss for result in take_steps(strategy, 0, 4)]
    export_to(strategy, Path(out), Path(folder))
    assert verify_export(strategy, out, TOKENS) < 0.15
    return losses


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_loop_trains_adapters_and_goes_on_at_its_exact_step(stage, student, tmp_path):
    lora = replace(LORA, dropout=0.1)
    whole = make_job(tmp_path / "a", student, stage, lora=lora)
    train(whole, World())
    job = make_job(tmp_path / "b", student, stage, lora=lora)
    train_until_killed(job, World(), at=5)
    train(job, World())
    ours, theirs = (load_file(Path(run.run_uri) / run.model_path / "model.safetensors") for run in (job, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_dpo_starts_at_ln_2_from_the_merged_model_of_sft(student, tmp_path):
    train(make_job(tmp_path, student, "sft", lora=LORA), World())
    job = make_job(tmp_path, tmp_path / "models" / "sft", "dpo", lora=LORA)
    train(job, World())
    from moaa_ray.data.store import open_store
    from moaa_ray.training.metrics import read_metrics

    lines = read_metrics(open_store(job.run_uri), job.metrics_path)
    assert lines[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_adapters_begin_alike_in_every_strategy(folder):
    first = {name: p.detach() for name, p in adapted(folder).named_parameters() if is_adapter(name)}
    again = {name: p.detach() for name, p in adapted(folder, "single").named_parameters() if is_adapter(name)}
    assert_equal_states(again, first)
    bound = [(p.abs().max(), 1 / p.shape[1] ** 0.5) for name, p in first.items() if name.endswith("lora_a")]
    assert all(0.9 * most < largest <= most for largest, most in bound)
    layers = [module for module in adapted(folder).model.modules() if isinstance(module, LoraLinear)]
    assert all(not layer.lora_b.any() and layer.scale == 2.0 for layer in layers)
