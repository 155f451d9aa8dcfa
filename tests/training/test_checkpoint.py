"""Checkpoints: a run that was cut off goes on as if it had not been, and what is not whole is never taken."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from moaa_ray.data.store import open_store  # noqa: E402
from moaa_ray.errors import ConfigError, DataError, StageError  # noqa: E402
from moaa_ray.training.checkpoint import Checkpoints  # noqa: E402
from moaa_ray.training.microbatch import lay_out  # noqa: E402
from tests.training.processes import (  # noqa: E402
    DOCUMENTS,
    assert_equal_states,
    make_strategy,
    on_workers,
    save_model,
    state_of,
    take_steps,
)

RUN = {"seed": "1", "learning_rate": "0.001"}


@pytest.fixture
def model(tmp_path) -> Path:
    return save_model(tmp_path / "model")


def train(uri: str, name: str, model: str, first: int, last: int, is_async: bool = True) -> dict[str, torch.Tensor]:
    """Steps first..last-1 from the newest checkpoint, if there is one, and a checkpoint at the end: its state."""
    strategy = make_strategy(name, model)
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    found = checkpoints.newest()
    assert (0 if found is None else found.step) == first
    if found is not None:
        checkpoints.load(found, strategy)
        assert found.extra == {"next_step": first}
    take_steps(strategy, first, last)
    checkpoints.save(last, strategy, {"next_step": last}, is_async=is_async)
    checkpoints.wait()
    return state_of(strategy)


def saved(uri: str, model: Path, *steps: int, keep: int = 9, fingerprint: dict | None = None) -> Checkpoints:
    checkpoints = Checkpoints(uri, fingerprint=RUN if fingerprint is None else fingerprint, keep=keep)
    strategy = make_strategy("single", model)
    for step in steps:
        checkpoints.save(step, strategy, {}, is_async=False)
    return checkpoints


def steps_at(uri: str) -> list[int]:
    return sorted({int(path.split("/")[0][5:]) for path in open_store(uri).list()})


def test_a_run_that_was_cut_off_ends_bit_equal(tmp_path, model):
    unbroken = train(str(tmp_path / "a"), "single", str(model), 0, 6)
    train(str(tmp_path / "b"), "single", str(model), 0, 3)
    assert_equal_states(train(str(tmp_path / "b"), "single", str(model), 3, 6), unbroken)


def test_moments_matter_to_the_steps_that_follow(tmp_path, model):
    """The test above could not fail otherwise: weights alone do not give the same steps."""
    strategy = make_strategy("single", model)
    take_steps(strategy, 0, 6)
    unbroken = state_of(strategy)["model.norm.weight"]
    strategy = make_strategy("single", model)
    take_steps(strategy, 0, 3)
    strategy.optimizer.state.clear()
    take_steps(strategy, 3, 6)
    assert not torch.equal(state_of(strategy)["model.norm.weight"], unbroken)


def test_a_checkpoint_before_the_first_step_changes_nothing(tmp_path, model):
    unbroken = train(str(tmp_path / "a"), "single", str(model), 0, 2)
    strategy = make_strategy("single", model)
    Checkpoints(str(tmp_path / "b"), fingerprint=RUN).save(0, strategy, {}, is_async=False)
    take_steps(strategy, 0, 2)
    assert_equal_states(state_of(strategy), unbroken)


def test_what_is_saved_in_the_background_is_the_state_when_it_was_asked_for(tmp_path, model):
    strategy = make_strategy("single", model)
    take_steps(strategy, 0, 2)
    wanted = state_of(strategy)
    checkpoints = Checkpoints(str(tmp_path), fingerprint=RUN)
    blocked_s = checkpoints.save(2, strategy, {})
    take_steps(strategy, 2, 5)
    found = checkpoints.newest()
    assert found is not None
    assert blocked_s > 0
    checkpoints.load(found, strategy)
    assert_equal_states(state_of(strategy), wanted)


def test_an_object_store_holds_checkpoints_too(model):
    uri = "memory://test-checkpoint/run/checkpoints/sft"
    unbroken = train("memory://test-checkpoint/other", "single", str(model), 0, 4)
    train(uri, "single", str(model), 0, 2)
    assert_equal_states(train(uri, "single", str(model), 2, 4), unbroken)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path, model):
    saved(str(tmp_path / "c"), model, 1)
    files = sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert [path.suffix for path in files] == [".safetensors", ".json", ".json"]
    from safetensors.torch import load_file

    assert "optimizer.model.norm.weight.exp_avg" in load_file(files[0])
    for path in files[1:]:
        json.loads(path.read_text())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("complete.json", Path.unlink),
        ("complete.json", _truncate),
        ("complete.json", lambda path: path.write_text("{}")),
        ("*.safetensors", Path.unlink),
        ("*.safetensors", _truncate),
        ("i*", _truncate),
    ],
)
def test_a_torn_checkpoint_is_not_chosen_and_can_be_saved_again(pattern, damage, tmp_path, model):
    checkpoints = saved(str(tmp_path / "c"), model, 1, 2)
    damage(next((tmp_path / "c" / "step-00000002").glob(pattern)))
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    with pytest.raises(StageError, match="step-00000002 is not, or no longer, a whole checkpoint"):
        checkpoints.at(2)
    saved(str(tmp_path / "c"), model, 2)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(str(tmp_path / "c"), fingerprint=RUN).newest() is None


def test_a_step_that_is_complete_stays_as_it_is(tmp_path, model):
    uri = str(tmp_path / "c")
    first = saved(uri, model, 1).at(1)
    assert saved(uri, model, 1).at(1) == first


def test_another_runs_checkpoint_is_refused_by_what_differs(tmp_path, model):
    saved(str(tmp_path / "c"), model, 1)
    other = Checkpoints(str(tmp_path / "c"), fingerprint={"seed": "2", "learning_rate": "0.001"})
    with pytest.raises(
        ConfigError, match=r"step-00000001 is a checkpoint of another run: seed was 1, is 2; use another"
    ):
        other.newest()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, model):
    checkpoints = saved(str(tmp_path / "c"), model, 1)
    qwen3 = make_strategy("single", save_model(tmp_path / "qwen3", "qwen3"))
    with pytest.raises(ConfigError, match=r"is a checkpoint of another model: model\.lm_head\.weight"):
        checkpoints.load(checkpoints.at(1), qwen3)


def test_pruning_keeps_the_newest_and_the_pinned(tmp_path, model):
    uri = str(tmp_path / "c")
    strategy = make_strategy("single", model)
    checkpoints = Checkpoints(uri, fingerprint=RUN, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, strategy, {}, is_async=False, pinned={1})
    assert steps_at(uri) == [1, 2, 3]
    checkpoints.save(4, strategy, {}, is_async=False, pinned={2})
    assert steps_at(uri) == [2, 3, 4]
    assert checkpoints.at(2).step == 2


def test_pruning_takes_broken_ones_away_but_not_what_may_be_in_the_making(tmp_path, model):
    uri = str(tmp_path / "c")
    saved(uri, model, 1, 2, 4, 5)
    for step in (2, 4, 5):
        (tmp_path / "c" / f"step-{step:08d}" / "complete.json").unlink()
    saved(uri, model, 3, keep=1)
    assert steps_at(uri) == [3, 4, 5]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep_checkpoints = 0; a run keeps at least its newest"):
        Checkpoints(str(tmp_path), fingerprint=RUN, keep=0)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_folder_that_cannot_be_written_says_so(is_async, tmp_path, model):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-00000001").write_text("in the way")
    checkpoints = Checkpoints(str(tmp_path / "c"), fingerprint=RUN)
    strategy = make_strategy("single", model)
    with pytest.raises(StageError, match=r"step-00000001.*run the same command again"):  # noqa: PT012
        checkpoints.save(1, strategy, {}, is_async=is_async)
        checkpoints.wait()
    checkpoints.save(2, strategy, {}, is_async=is_async)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2


def test_a_file_that_is_damaged_inside_is_named_when_it_is_read(tmp_path, model):
    checkpoints = saved(str(tmp_path / "c"), model, 1)
    path = next((tmp_path / "c").rglob("*.safetensors"))
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(DataError, match="not a safetensors file"):
        checkpoints.load(checkpoints.at(1), make_strategy("single", model))


def _grow(uri: str, model: str, name: str, first: int, last: int) -> dict[str, torch.Tensor]:
    return train(uri, name, model, first, last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", pytest.param("ddp", marks=pytest.mark.long)])
def test_two_workers_that_were_cut_off_end_bit_equal(name, tmp_path, model):
    unbroken = on_workers(2, _grow, str(tmp_path / "a"), str(model), name, 0, 6)[0]
    on_workers(2, _grow, str(tmp_path / "b"), str(model), name, 0, 3)
    for state in on_workers(2, _grow, str(tmp_path / "b"), str(model), name, 3, 6):
        assert_equal_states(state, unbroken)


@pytest.mark.slow
def test_workers_may_come_and_go_and_strategies_change(tmp_path):
    """1 -> 2 -> 1 workers, single -> fsdp2 -> ddp: what is read is bit-equal, and the steps agree to 1e-5.

    qwen3 has a tied head, and 193 words do not divide by two.
    """
    model = str(save_model(tmp_path / "model", "qwen3"))
    unbroken = train(str(tmp_path / "a"), "single", model, 0, 6)
    uri = str(tmp_path / "b")
    train(uri, "single", model, 0, 2)
    on_workers(2, _grow, uri, model, "fsdp2", 2, 4)
    before, after = on_workers(2, _read_back, uri, model, "ddp", "fsdp2")
    assert_equal_states(before, after)
    assert_equal_states(train(uri, "single", model, 4, 6), unbroken, within=1e-5)
    single = make_strategy("single", model)
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    checkpoints.load(checkpoints.at(4), single)
    assert_equal_states(state_of(single), before)


@pytest.mark.long
def test_two_nodes_save_what_all_workers_and_one_read(tmp_path):
    model = str(save_model(tmp_path / "model", "qwen3"))
    uri = str(tmp_path / "c")
    start = train(uri, "single", model, 0, 1)
    single = make_strategy("single", model)
    for read, saved, resharded in on_workers(4, _save_on_two_nodes, uri, model):
        assert_equal_states(read, start)
        assert_equal_states(resharded, saved)
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    checkpoints.load(checkpoints.at(2), single)
    assert_equal_states(state_of(single), saved)


def _save_on_two_nodes(uri: str, model: str) -> tuple[dict[str, torch.Tensor], ...]:
    """The state after step 1 as replicas read it; the one after step 2 that they save, and as all workers read it."""
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    replicas = make_strategy("fsdp2", model, num_nodes=2)
    checkpoints.load(checkpoints.at(1), replicas)
    read = state_of(replicas)
    take_steps(replicas, 1, 2)
    checkpoints.save(2, replicas, {}, is_async=False)
    shards = make_strategy("fsdp2", model, num_nodes=2, sharding="all")
    checkpoints.load(checkpoints.at(2), shards)
    return read, state_of(replicas), state_of(shards)


def _read_back(uri: str, model: str, *names: str) -> dict[str, torch.Tensor]:
    """The state after step 4 as read by the rank's own choice among two strategies."""
    states = []
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    for name in names:
        strategy = make_strategy(name, model)
        checkpoints.load(checkpoints.at(4), strategy)
        states.append(state_of(strategy))
    return states[torch.distributed.get_rank()]


def _forward_then_save_and_load(uri: str, model: str) -> tuple[dict, dict, float, float]:
    """Forward calls without backward, as validation makes them, before a save and before a load."""
    strategy = make_strategy("fsdp2", model)
    take_steps(strategy, 0, 2)
    wanted = state_of(strategy)
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    with torch.no_grad():
        trained = float(strategy.model(lay_out(DOCUMENTS)).sum())
    checkpoints.save(2, strategy, {}, is_async=False)
    other = make_strategy("fsdp2", model)
    with torch.no_grad():
        other.model(lay_out(DOCUMENTS))
        checkpoints.load(checkpoints.at(2), other)
        loaded = float(other.model(lay_out(DOCUMENTS)).sum())
    return state_of(other), wanted, loaded, trained


@pytest.mark.slow
def test_weights_that_validation_has_gathered_are_neither_saved_nor_kept(tmp_path, model):
    for got, wanted, loaded, trained in on_workers(2, _forward_then_save_and_load, str(tmp_path / "c"), str(model)):
        assert_equal_states(got, wanted)
        assert loaded == trained


def _fail_to_save(uri: str, model: str) -> str:
    checkpoints = Checkpoints(uri, fingerprint=RUN)
    strategy = make_strategy("fsdp2", model)
    try:
        checkpoints.save(1, strategy, {})
        checkpoints.wait()
    except StageError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_all_workers_hear_of_one_that_cannot_write(tmp_path, model):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-00000001").write_text("in the way")
    first, second = on_workers(2, _fail_to_save, str(tmp_path / "c"), str(model))
    assert first == second != ""


_KILLED = """
    import sys
    import torch
    from tests.training.processes import make_strategy, take_steps
    from moaa_ray.training.checkpoint import Checkpoints

    torch.set_num_threads(1)  # as the process that compares does: other counts add in another order
    uri, model = sys.argv[1:]
    checkpoints = Checkpoints(uri, fingerprint={"seed": "1", "learning_rate": "0.001"})
    strategy = make_strategy("single", model)
    for step in range(1, 10_000):
        take_steps(strategy, step - 1, step)
        checkpoints.save(step, strategy, {"next_step": step})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_saving_leaves_the_newest_complete_one(tmp_path, model):
    """Kills, each a little later into the third save, of a process that always saves; what is found is always whole.

    The first one comes just after the save was asked for, and finds that one torn.
    """
    steps_lost = []
    for number in range(6):
        uri = str(tmp_path / f"run-{number}")
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_KILLED), uri, str(model)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        asked = 0
        while asked < 3:
            asked = int(child.stdout.readline())
        time.sleep(number * 0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        checkpoints = Checkpoints(uri, fingerprint=RUN)
        found = checkpoints.newest()
        assert found is not None
        assert found.step >= asked - 1
        strategy = make_strategy("single", model)
        checkpoints.load(found, strategy)
        wanted = make_strategy("single", model)
        take_steps(wanted, 0, found.step)
        assert_equal_states(state_of(strategy), state_of(wanted))
        steps_lost.append(asked - found.step)
    assert steps_lost[0] == 1, steps_lost
