"""Whatever ran out of memory, and wherever: the error says which settings make room."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402

from moaa_ray.errors import StageError  # noqa: E402
from moaa_ray.training import loop  # noqa: E402
from moaa_ray.training.strategies.base import Numerics, World, from_first  # noqa: E402
from moaa_ray.training.trainer import Workers, lost_workers  # noqa: E402
from tests.training.jobs import make_job, make_student  # noqa: E402

DIED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed"
)
KILLED = (
    "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 3770) was "
    "8.27GB used / 23.54GB limit (0.351444)\nOOM kill reason: Memory usage 8867201024B exceeded threshold\n" + "x" * 900
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return make_job(folder / "run", make_student(folder / "student"), num_rows=8)


def too_large_for_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.empty(10**15), "DefaultCPUAllocator: can't allocate memory"),
        (lambda: bytearray(10**17), r"on cpu \(MemoryError\)"),
        (too_large_for_cuda, r"CUDA out of memory\. Tried to allocate 2\.00 GiB"),
    ],
)
def test_a_lack_of_memory_in_a_worker_names_the_settings_that_make_room(job, allocate, said, monkeypatch):
    monkeypatch.setattr(loop, "take_step", lambda *args, **kwargs: allocate())
    with pytest.raises(StageError, match=said) as caught:
        loop.train(job, World())
    for way in (
        "lower sft.micro_batch (now 2), ",
        "set activation_checkpointing: true, ",
        "set strategy: fsdp2 with more workers: ",
        "lower max_tokens",
    ):
        assert way in str(caught.value)


def test_a_lack_of_memory_in_what_the_first_worker_does_alone_is_told_to_all_as_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(MemoryError, match=r"the first worker failed: OutOfMemoryError: CUDA out of memory"):
            from_first(too_large_for_cuda)
        with pytest.raises(StageError, match="the first worker failed: KeyError: 'x'"):
            from_first(lambda: {}["x"])
    finally:
        dist.destroy_process_group()


def test_other_errors_stay_what_they_are(job, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "take_step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.train(job, World())


def test_only_what_can_still_be_turned_is_advised(job):
    tight = replace(job, micro_batch=1, strategy="fsdp2", numerics=Numerics(activation_checkpointing=True))
    workers = Workers(num=16, use_gpu=True, num_cpus=1, max_restarts=3)
    said = str(lost_workers(tight, workers, RuntimeError(KILLED)))
    assert said == (
        "sft: workers were lost and 3 restarts did not help: Ray killed some, as a node ran low on memory (Memory on "
        "the node (IP: 192.0.2.2, ID: 3770) was 8.27GB used / 23.54GB limit (0.351444)); spread the model over more "
        "workers, with sharding: all over several nodes: the same command then goes on from the last checkpoint. Or "
        "lower max_tokens, in another run_dir"
    )
    sharded = replace(tight, numerics=Numerics(activation_checkpointing=True, sharding="all", keep_gathered=True))
    said = str(lost_workers(sharded, workers, RuntimeError(KILLED)))
    assert "; set keep_gathered: false, spread the model over more workers: the same command" in said


def test_a_process_that_is_just_gone_may_have_been_killed_for_its_memory(job):
    workers = Workers(num=2, use_gpu=False, num_cpus=1, max_restarts=0)
    said = str(lost_workers(job, workers, RuntimeError(DIED)))
    assert "killed or crashed. The kernel kills where a node's memory is full" in said
    assert "lower sft.micro_batch (now 2)" in said
    other = str(lost_workers(job, workers, RuntimeError("no placement")))
    assert other.endswith("0 restarts did not help: ...no placement; the same command goes on from the last checkpoint")
