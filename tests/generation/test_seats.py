"""Workers with GPUs on a cluster of several nodes. The GPUs are Ray's resources alone, and the engines fake."""

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.core.packing_gpus import Node
from moaa_ray.core.passes import StageWork
from moaa_ray.core.turns import close_turn
from moaa_ray.data import commit, schemas
from moaa_ray.data.store import open_store
from moaa_ray.engines.build import build_engine
from moaa_ray.generation import todo
from moaa_ray.generation.line import Line, run_line, start_coordinator
from moaa_ray.generation.pool import Pool
from moaa_ray.generation.seats import seats
from moaa_ray.generation.worker import PoolWork
from moaa_ray.planning.gpu_types import TYPE_LABEL
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Message, Row, Sampling
from tests.cluster import nodes

NUM_ROWS = 24
RULES = MixtureRules(run_seed=0)


def mixture_pass(name: str, *, is_final: bool) -> MixturePass:
    speaker = Speaker(proposer=name, model=name, revision="", layer=0)
    return MixturePass(
        name=name, engine=name, speaker=speaker, sampling=Sampling(max_tokens=8), rules=RULES, is_final=is_final
    )


def pool(ask: MixturePass, *, num_gpus: int, replicas: int = 1, spans_nodes: bool = False) -> Pool:
    work = PoolWork(
        name=ask.name,
        passes=(ask,),
        make_engine=functools.partial(build_engine, FakeModel(engine="fake"), on_gpu=False),
        request_timeout_s=60,
        hang_after_s=60,
        num_slots=4,
        on_missing="fail",
    )
    return Pool(
        work=work,
        min_replicas=replicas,
        max_replicas=replicas,
        num_cpus=1,
        num_gpus=num_gpus,
        spans_nodes=spans_nodes,
        blocks_in_flight=2,
        node_labels={},
        setup={},
    )


def make_line(folder: Path, pools: list[Pool]) -> tuple[Line, list]:
    """A line over NUM_ROWS new rows, and its blocks."""
    passes = tuple(ask for each in pools for ask in each.work.passes)
    close = functools.partial(close_turn, passes=passes)
    work = StageWork(stage="generate", passes=passes, close=close, reopen=lambda row: row)
    store = open_store(str(folder / "run"))
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, work.stage, epoch)
    rows = [Row(id=f"r{i}", source="s", messages=(Message(role="user", content="Hi"),)) for i in range(NUM_ROWS)]
    records = [schemas.row_record(row, pass_names=work.columns) for row in rows]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(work.columns))
    path = commit.commit_block(store, work.stage, "0.0", epoch.number, "new-0", table)
    steps = [todo.Step(ref=(path, i), turn=0, first_pass=0) for i in range(NUM_ROWS)]
    blocks = todo.blocks_for(steps, block_rows=4)
    limits = {"start_timeout_s": 60, "hang_after_s": 60, "restart_after_s": 600, "max_failed": NUM_ROWS}
    counts = {"num_done": len(passes), "num_credits": 4, "block_rows": 4, "num_tickets": len(blocks)}
    return Line(run_uri=store.uri, epoch=epoch.number, work=work, pools=tuple(pools), **counts, **limits), blocks


def run(line: Line, blocks: list) -> int:
    coordinator = start_coordinator(line, blocks)
    try:
        return sum(run_line(line, coordinator))
    finally:
        ray.kill(coordinator)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes of four GPUs each, beside a head without any."""
    with nodes.cluster(head_cpus=4) as cluster:
        for _ in range(2):
            nodes.Node(cluster, 6, num_gpus=4)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()


def node(num_gpus: int, gpu: str) -> Node:
    return Node(num_gpus=num_gpus, num_cpus=16, gpu=gpu, labels=frozenset({(TYPE_LABEL, gpu)}))


def test_engines_that_keep_to_gpu_types_sit_on_nodes_of_these(monkeypatch):
    """Written as Ray is asked for them: one type, or one of several."""
    weak, middle, strong = ids = [digit * 56 for digit in "abc"]
    there = dict(zip(ids, [node(8, "L4"), node(4, "L40S"), node(4, "H200")], strict=True))
    monkeypatch.setattr("moaa_ray.generation.seats.live_nodes", lambda: there)
    first, second = (mixture_pass(name, is_final=False) for name in ("first", "second"))
    pools = [
        replace(pool(first, num_gpus=4), node_labels={TYPE_LABEL: "in(H200,L40S)"}),
        replace(pool(second, num_gpus=2, replicas=2), node_labels={TYPE_LABEL: "L4"}),
    ]
    with seats(pools) as (one, other):
        assert one()["scheduling_strategy"].node_id in (middle, strong)
        assert [other()["scheduling_strategy"].node_id for _ in range(2)] == [weak, weak]
        assert other() == {"label_selector": {TYPE_LABEL: "L4"}}  # by which the pool would grow


def test_on_one_node_with_gpus_there_is_nothing_to_choose(monkeypatch):
    monkeypatch.setattr("moaa_ray.generation.seats.live_nodes", lambda: {"a": node(8, "H100"), "b": node(0, "")})
    with seats([pool(mixture_pass("one", is_final=True), num_gpus=4)]) as (one,):
        assert one() == {}


@pytest.mark.slow
def test_small_engines_leave_a_node_whole_for_a_large_one_and_every_row_comes_through(tmp_path, two_nodes):
    """Two engines of one GPU and one of two share a node; spread, they would leave none with four GPUs free."""
    small, middle, large = (mixture_pass(name, is_final=name == "large") for name in ("small", "middle", "large"))
    pools = [pool(small, num_gpus=1, replicas=2), pool(middle, num_gpus=2), pool(large, num_gpus=4)]
    assert run(*make_line(tmp_path, pools)) == NUM_ROWS
    with seats(pools) as (seat, *others):
        on = [each()["scheduling_strategy"].node_id for each in (seat, seat, *others)]
    assert sorted(Counter(on).values()) == [1, 3]


@pytest.mark.slow
def test_an_engine_over_both_nodes_gives_its_gpus_back_to_the_line_after_it(tmp_path, two_nodes):
    wide = replace(pool(mixture_pass("wide", is_final=True), num_gpus=8), spans_nodes=True)
    after = pool(mixture_pass("after", is_final=True), num_gpus=4, replicas=2)
    assert run(*make_line(tmp_path / "1", [wide])) == NUM_ROWS
    assert run(*make_line(tmp_path / "2", [after])) == NUM_ROWS
