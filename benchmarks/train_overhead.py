"""What Ray Train costs a training step, and for how long a checkpoint stops it.

    python benchmarks/train_overhead.py --repeats 3 --out benchmarks/results/train_overhead_<where>.json

The model, packs and steps of train_sft.py (needs ../shared/data, or --data), as whole jobs of training/loop.py, each in
processes of its own, on one thread a worker. Once the first lines of metrics are there they take turns of half a
second; a step's seconds are those of its own turns.

    bare            the loop in this process, no checkpoint before the last
    ray             the same job in one worker of Ray Train
    async, sync     bare, with a checkpoint after every third step, written in the background or not
    ddp_2, fsdp2_2  two workers of Ray Train, a checkpoint after every third step, in the background

ray_cpu_over_bare - 1 is the overhead in the process that trains, by CPU time; ray_over_bare has the seconds of the
step, in which all other processes of Ray take part too where cores are few. stall is what save() held up (save_s) over
the mean step. written_over_bare is the mean step with checkpoints in the background over the same without: a writer on
a core of its own is not free.
"""

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import _alpaca_units
import _common
import _training
import _turns
import numpy as np
import psutil

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.data import commit
from moaa_ray.data.store import open_store
from moaa_ray.data.unit_store import finish, write_chunk
from moaa_ray.data.units import Unit
from moaa_ray.demo.tiny import LLAMA3
from moaa_ray.training.job import Cadence, Job, Rates
from moaa_ray.training.loop import train
from moaa_ray.training.metrics import read_metrics
from moaa_ray.training.strategies.base import Numerics, World

CONTENDERS = ("bare", "ray", "async", "sync", "ddp_2", "fsdp2_2")
CHECKPOINT_EVERY = 3


def make_job(folder: Path, run: Path, *, steps: int) -> Job:
    """SFT on the prepared packs, four a step, with a checkpoint at the end alone."""
    student = folder / "student"
    if not student.exists():
        tokenizer = _alpaca_units.load_tokenizer(folder)
        tokenizer.chat_template = LLAMA3
        _training.make_llama().save_pretrained(student)
        tokenizer.save_pretrained(student)
    packs = _alpaca_units.load_units(folder, "packs")[: steps * _training.PACKS]
    store = open_store(str(run))
    units = [Unit(ids=(f"p{i}",), documents=tuple(pack)) for i, pack in enumerate(packs)]
    write_chunk(store, "work/sft/units", "0", units)
    finish(store, "work/sft/units", {})
    return Job(
        stage="sft",
        run_uri=str(run),
        epoch=commit.take_epoch(store, commit.owner_record()).number,
        student=str(student),
        student_digest="benchmark",
        chat_template="",
        units=("work/sft/units",),
        validation=(),
        plan=BatchPlan(sources=(Source(len(units)),), batch=_training.PACKS, epochs=1, seed=0),
        micro_batch=1,
        strategy="single",
        numerics=Numerics(),
        rates=Rates(peak=_training.RATE),
        cadence=Cadence(checkpoint_every=10**6, is_async=False),
        preference=None,
        fingerprint={},
        card="# A student of a benchmark\n",
    )


def measure(name: str, folder: Path, steps: int) -> dict:
    """One job of one contender."""
    run = folder / "runs" / f"{name}-{len(list((folder / 'runs').glob('*')))}"
    job = make_job(folder, run, steps=steps)
    if name not in ("bare", "ray"):
        strategy = name.removesuffix("_2") if name.endswith("_2") else "single"
        cadence = Cadence(checkpoint_every=CHECKPOINT_EVERY, is_async=name != "sync")
        job = replace(job, strategy=strategy, cadence=cadence)
    threading.Thread(target=say_ready, args=(job,), daemon=True).start()
    used: list[tuple[float, float]] = []
    threading.Thread(target=note_cpu, args=(used, name in ("bare", "async", "sync")), daemon=True).start()
    if name in ("ray", "ddp_2", "fsdp2_2"):
        in_ray(job, num_workers=2 if name.endswith("_2") else 1)
    else:
        import torch

        torch.set_num_threads(1)
        train(job, World())
    lines = read_metrics(open_store(job.run_uri), job.metrics_path)
    offset = time.time() - time.monotonic()
    ends = [line["time"] - offset for line in lines]
    return {
        "ends": ends,
        "cpu_s": np.interp(ends, *zip(*used, strict=True)).tolist(),
        "save_s": [line["save_s"] for line in lines],
        "loss": lines[-1]["loss"],
    }


def note_cpu(used: list[tuple[float, float]], is_here: bool) -> None:
    """Note again and again what the processes that train have used of CPU time, each with the moment."""
    training = [psutil.Process()] if is_here else []
    while True:
        if not training:
            children = psutil.Process().children(recursive=True)
            training = [child for child in children if "".join(child.cmdline()).startswith("ray::RayTrainWorker")]
        with contextlib.suppress(psutil.Error):  # they have ended
            times = [process.cpu_times() for process in training]
            used.append((time.monotonic(), sum(each.user + each.system for each in times)))
        time.sleep(0.2)


def say_ready(job: Job) -> None:
    """Have the turns begin when the first steps are told of."""
    while not read_metrics(open_store(job.run_uri), job.metrics_path):
        time.sleep(0.05)
    _turns.say_ready()


def in_ray(job: Job, *, num_workers: int) -> None:
    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig
    from moaa_ray.training.trainer import Workers, run_training

    with session(RayConfig(address="local"), cpu_slots=num_workers, with_dashboard=True):
        workers = Workers(num=num_workers, use_gpu=False, num_cpus=1, max_restarts=0)
        run_training(job, workers, attempt="000001", watch=lambda: None)


def facts(run: Mapping) -> dict[str, float]:
    """Mean step and median stall of a run, from the first step that ended within its turns."""
    begin = next(i for i, own_s in enumerate(run["own_s"]) if own_s)
    stalls = [save_s for save_s in run["save_s"][begin + 1 :] if save_s]
    return {
        "steps": len(run["own_s"]) - 1 - begin,
        "step_s": (run["own_s"][-1] - run["own_s"][begin]) / (len(run["own_s"]) - 1 - begin),
        "cpu_step_s": (run["cpu_s"][-1] - run["cpu_s"][begin]) / (len(run["own_s"]) - 1 - begin),
        "stall_s": statistics.median(stalls) if stalls else 0.0,
    }


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    found = {name: [facts(run) for run in of] for name, of in runs.items()}
    bare = found["bare"]

    def over_bare(name: str, key: str = "step_s") -> dict[str, float]:
        return _common.spread([a[key] / b[key] for a, b in zip(found[name], bare, strict=True)])

    return {
        **_training.about(load, arguments),
        "ray_over_bare": over_bare("ray"),
        "ray_cpu_over_bare": over_bare("ray", "cpu_step_s"),
        "written_over_bare": over_bare("async") if "async" in found else None,
        "stall": {
            name: _common.spread([one["stall_s"] / one["step_s"] for one in of])
            for name, of in found.items()
            if name not in ("bare", "ray")
        },
        "by_contender": {
            name: _common.spreads(of, ("steps", "step_s", "cpu_step_s", "stall_s")) for name, of in found.items()
        },
        "runs": runs,
    }


def main() -> None:
    _training.run(
        __file__,
        __doc__,
        CONTENDERS,
        measure,
        report,
        steps=40,
        units_a_step=_training.PACKS,
        turns=0,
        optional=CONTENDERS[2:],
    )


if __name__ == "__main__":
    main()
