"""ZeRO-3 takes the steps that one process takes, in shards, offloaded, checkpointed and resumed elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if find_spec("deepspeed") is None:  # not imported here: it would choose its device before the strategy tells it
    pytest.skip("deepspeed is not installed", allow_module_level=True)

from moaa_ray.core.batches import deal  # noqa: E402
from moaa_ray.errors import ConfigError, StageError  # noqa: E402
from moaa_ray.training.checkpoint import Checkpoints  # noqa: E402
from moaa_ray.training.export import export  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from moaa_ray.training.optimizer import AdamWSettings  # noqa: E402
from moaa_ray.training.step import StepResult, sft_step  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, Strategy, World  # noqa: E402
from moaa_ray.training.strategies.build import build_strategy  # noqa: E402
from moaa_ray.training.strategies.deepspeed import DeepSpeed  # noqa: E402
from moaa_ray.training.strategies.single import Single  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402
from tests.training.processes import on_workers, save_model, world  # noqa: E402
from tests.training.students import make_documents, make_model  # noqa: E402
from tests.training.test_strategies import assert_same_curve  # noqa: E402
from tests.training.workers import LENGTHS, train_steps  # noqa: E402

LONG = pytest.mark.long
DECAYING = Numerics(adamw=AdamWSettings(weight_decay=0.1))


def take_steps(strategy: Strategy, steps: range) -> list[StepResult]:
    """SFT steps, each on the same eight documents in another order, in two microbatches or more."""
    documents = make_documents(LENGTHS[:8])
    num_targets = sum(document.num_targets for document in documents)
    results = []
    for step in steps:
        units = documents[step % 8 :] + documents[: step % 8]
        dealt = deal(range(8), [len(unit.tokens) for unit in units], strategy.world.size, 2)
        micro = [lay_out([units[i] for i in hand]) for hand in dealt[strategy.world.rank]]
        results.append(sft_step(strategy, micro, num_targets=num_targets, rate=1e-3))
    return results


def alone(numerics: Numerics, num_steps: int) -> tuple[list[StepResult], dict[str, Any]]:
    """The steps of one process and one device, and the weights after them."""
    torch.set_num_threads(1)
    strategy = Single(Student(make_model("llama")), World(), numerics)
    results = take_steps(strategy, range(num_steps))
    return results, {name: weight.detach() for name, weight in strategy.full_parameters()}


def sharded(numerics: Numerics, num_steps: int, cpu_offload: bool = False) -> tuple[list[StepResult], dict[str, Any]]:
    strategy = DeepSpeed(Student(make_model("llama")), world(), numerics, cpu_offload=cpu_offload)
    results = take_steps(strategy, range(num_steps))
    return results, dict(strategy.full_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_workers", "per_worker"), [(2, 4), *(pytest.param(*of, marks=LONG) for of in ((1, 8), (1, 2), (2, 1)))]
)
def test_ten_steps_of_sft_and_of_dpo_equal_those_of_one_process(num_workers, per_worker):
    single = train_steps("single", num_workers=1, per_worker=8, num_steps=10)
    many = train_steps("deepspeed", num_workers=num_workers, per_worker=per_worker, num_steps=10)
    assert_same_curve(many, single)


@pytest.mark.slow
def test_a_tied_output_layer_is_sharded_once():
    """Its steps amplify rounding: single with another accumulation is 6e-6 away after four steps, 2e-3 after ten."""
    single = train_steps("single", num_workers=1, per_worker=8, family="qwen3")
    many = train_steps("deepspeed", num_workers=2, per_worker=2, family="qwen3")
    assert_same_curve(many, single, rel=3e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("numerics", "cpu_offload"),
    [
        (DECAYING, True),
        pytest.param(DECAYING, False, marks=LONG),
        pytest.param(Numerics(activation_checkpointing=True), False, marks=LONG),
    ],
)
def test_decay_offload_and_activation_checkpointing_change_nothing(numerics, cpu_offload):
    wanted, weights = alone(numerics, 5)
    for got, got_weights in on_workers(2, sharded, numerics, 5, cpu_offload):
        assert_same_curve(got, wanted)
        assert_close_weights(got_weights, weights, atol=1e-5)


def assert_close_weights(got: dict[str, Any], wanted: dict[str, Any], *, atol: float = 0.0) -> None:
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert got[name].dtype == torch.float32
        assert got[name].shape == weight.shape
        assert (got[name] - weight).abs().max() <= atol, name


def empty(model: Any) -> Any:
    """The same model with all parameters on the meta device, tied ones still tied."""
    emptied: dict[Any, Any] = {}
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, emptied.setdefault(p, torch.nn.Parameter(p.detach().to("meta"))))
    return model


def start_empty_and_fill(family: str, numerics: Numerics) -> tuple[dict[str, Any], bool, float]:
    """The weights after they were filled in, whether buffers stayed as they were, and the loss of one step."""
    given = [(name, p.detach()) for name, p in make_model(family).named_parameters()]
    model = empty(make_model(family, seed=1))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    strategy = DeepSpeed(Student(model), world(), numerics)
    strategy.fill(given)
    weights = dict(strategy.full_parameters())
    are_kept = all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    return weights, are_kept and bool(buffers), take_steps(strategy, range(1))[0].loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "numerics"),
    [
        ("qwen3", Numerics()),
        pytest.param("gemma2", Numerics(), marks=LONG),
        pytest.param("llama", Numerics(is_bf16=True), marks=LONG),
    ],
    ids=["tied", "gemma2", "bfloat16"],
)
def test_an_empty_student_is_filled_shard_by_shard_and_read_back_whole(family, numerics):
    """Also in bfloat16 the masters hold every bit, and rotary frequencies stay float32; its loss is near float32's."""
    wanted = {name: p.detach() for name, p in make_model(family).named_parameters()}
    loss = take_steps(Single(Student(make_model(family)), World(), Numerics()), range(1))[0].loss
    for weights, are_buffers_kept, got in on_workers(2, start_empty_and_fill, family, numerics):
        assert are_buffers_kept
        assert_close_weights(weights, wanted)
        assert got == pytest.approx(loss, rel=1e-2 if numerics.is_bf16 else 1e-5)


def save_midway(folder: Path) -> tuple[list[StepResult], dict[str, Any]]:
    """Three steps, a checkpoint, three more."""
    strategy = DeepSpeed(Student(make_model("llama")), world(), DECAYING)
    take_steps(strategy, range(3))
    strategy.save(folder)
    return take_steps(strategy, range(3, 6)), dict(strategy.full_parameters())


def resume(folder: Path) -> tuple[list[StepResult], dict[str, Any]]:
    """From other weights: what is loaded has to replace them and the optimizer's state."""
    strategy = DeepSpeed(Student(make_model("llama", seed=1)), world(), DECAYING)
    strategy.load(folder)
    return take_steps(strategy, range(3, 6)), dict(strategy.full_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved_by", "resumed_by"), [(2, 2), pytest.param(2, 1, marks=LONG), pytest.param(1, 2, marks=LONG)]
)
def test_a_checkpoint_goes_on_to_the_bit_and_with_other_workers_as_near_as_they_are(tmp_path, saved_by, resumed_by):
    (wanted, weights), *_ = on_workers(saved_by, save_midway, tmp_path)
    for _ in range(2 if resumed_by != saved_by else 1):  # the second time the conversion is there
        (got, got_weights), *_ = on_workers(resumed_by, resume, tmp_path)
        if resumed_by == saved_by:
            assert got == wanted
        assert_same_curve(got, wanted, rel=1e-6)
        assert_close_weights(got_weights, weights, atol=0.0 if resumed_by == saved_by else 1e-6)


def train_save_export(name: str, folder: Path, run: Path) -> list[StepResult]:
    """Two steps and a checkpoint of the run's own kind; a new strategy goes on from it, and exports."""
    torch.set_num_threads(1)
    strategy = build_strategy(name, str(folder), world(), Numerics())
    checkpoints = Checkpoints(str(run / "checkpoints"), fingerprint={"student": "tiny"})
    results = take_steps(strategy, range(2))
    checkpoints.save(1, strategy, {"next_step": 2})
    checkpoints.wait()
    strategy = build_strategy(name, str(folder), world(), Numerics())
    found = checkpoints.newest()
    assert found is not None
    checkpoints.load(found, strategy)
    results += take_steps(strategy, range(2, 4))
    export(
        strategy,
        str(run / "model"),
        source_folder=folder,
        dtype=torch.float32,
        chat_template="{{ messages }}",
        card="#",
    )
    return results


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rel"), [("llama", 1e-5), pytest.param("qwen3", 1e-4, marks=LONG)])
def test_a_stage_from_a_folder_to_a_folder_equals_that_of_one_process(tmp_path, family, rel):
    """The tied model amplifies rounding: after four steps ddp and fsdp2 are 3e-5 away as well."""
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "student", family)
    wanted = train_save_export("single", folder, tmp_path / "single")
    for got in on_workers(2, train_save_export, "deepspeed", folder, tmp_path / "zero3"):
        assert_same_curve(got, wanted, rel=rel)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("zero3", "single")]
    weights, wanted_weights = ({name: p.detach() for name, p in model.named_parameters()} for model in models)
    assert_close_weights(weights, wanted_weights, atol=1e-5)


def break_and_report(folder: Path) -> tuple[float, bool, str]:
    """The norm of a step on a weight that is not a number, whether weights stayed, and what loading nothing says."""
    strategy = DeepSpeed(Student(make_model("llama")), world(), Numerics())
    before = dict(strategy.full_parameters())
    batch, num_targets = lay_out(make_documents([9])), 6
    with strategy.microbatch(is_last=True):
        strategy.backward(strategy.model(batch, torch.full((num_targets,), float("nan"))))
    norm = strategy.update(1e-3)
    is_kept = all(torch.equal(weight, before[name]) for name, weight in strategy.full_parameters())
    with pytest.raises(StageError, match="no DeepSpeed checkpoint") as error:
        strategy.load(folder)
    return norm, is_kept, str(error.value)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_reported_and_not_taken(tmp_path):
    for norm, is_kept, message in on_workers(2, break_and_report, tmp_path):
        assert norm != norm
        assert is_kept
        assert str(tmp_path) in message


def test_workers_that_are_not_joined_are_refused():
    with pytest.raises(ConfigError, match="init_process_group"):
        DeepSpeed(Student(make_model("llama")), World(), Numerics())


def test_compilation_is_refused_before_anything_is_sharded():
    student = Student(make_model("llama"))
    with pytest.raises(ConfigError, match="compile: false"):
        DeepSpeed(student, World(), Numerics(compile=True))
    assert next(student.parameters()).numel() > 0
