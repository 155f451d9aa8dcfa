"""Every step of a small driver x every fault x every kind of store, and pairs of faults during recovery.

Oracle: the answers are a function of (row id, engine), so what must be published is known in advance.
After every change of the store a reader of the public folder sees a whole publication or nothing.

The fast tests take what `_spread` picks, the slow ones every step x every fault. Each says how many points it
must have at least, just under what there are, so that a sweep that shrinks fails.
"""

import itertools
import json
from collections import Counter

import pyarrow as pa
import pytest

from moaa_ray.data import commit, publish
from moaa_ray.errors import FencedError, MoaaError, StageError
from tests.data.faulty_store import KINDS, CrashError, Process, World, faults_for, store_on

SCHEMA = pa.schema([("id", pa.string()), ("status", pa.string()), ("text", pa.string())])
IDS = ("r0", "r1", "r2", "r3")
BLOCKS = {
    "open a": ("0.0", IDS[:2], "open"),
    "b": ("0.0", IDS[2:], "ok"),
    "a": ("0.1", IDS[:2], "ok"),
    "again": ("0.2", IDS, "ok"),
}
ORDERS = [order for order in itertools.permutations(list(BLOCKS)[:3]) if order.index("open a") < order.index("a")]
TABLES: dict[tuple[str, str], pa.Table] = {}
SETTLED: dict = {}


def _block(name: str, engine: str) -> pa.Table:
    _, ids, status = BLOCKS[name]
    rows = [{"id": i, "status": status, "text": f"{engine} answers {i}"} for i in ids]
    return TABLES.setdefault((name, engine), pa.Table.from_pylist(rows, schema=SCHEMA))


def _drive(store, *, order=ORDERS[0], engine="same", is_complete=True, again=False):
    """A driver: takes an epoch, commits what is missing (the last block is delivered twice), publishes."""
    epoch = commit.take_epoch(store, {"host": engine, "pid": 1, "started": "now"})
    commit.adopt(store, "sft", epoch)
    publish.fence_publish(store, epoch)
    done = commit.read_statuses(store, commit.committed(store, "sft", epoch), num_threads=1)
    late = None
    for name in order if is_complete else order[:2]:
        part, ids, status = BLOCKS[name]
        if any(state not in ("ok", status) for state in done.of(ids)):
            commit.commit_block(store, "sft", part, epoch.number, name.replace(" ", "-"), _block(name, engine))
            late = (part, name)
    if again:  # what an older driver would publish is no longer the newest
        commit.commit_block(store, "sft", "0.2", epoch.number, "again", _block("again", engine))
    if late:  # the last block is delivered a second time
        commit.commit_block(store, "sft", late[0], epoch.number, late[1].replace(" ", "-"), _block(late[1], engine))
    statuses = commit.read_statuses(store, commit.committed(store, "sft", epoch), num_threads=1)
    ok = [row_id for row_id in IDS if statuses.of([row_id]) == ["ok"]]
    rows = commit.read_rows(store, statuses.refs(ok), batch_rows=3)
    return publish.publish(store, epoch, "sft", rows, SCHEMA, 3, {"rows": len(ok)})


def _run(kind, world, process=None, **how) -> BaseException | None:
    """One driver's life; what ended it, None when it published."""
    try:
        _drive(store_on(kind, world, process), **how)
    except (CrashError, MoaaError) as error:
        return error
    return None


def _published(kind, world):
    """What a reader sees: the shards of a glob on POSIX, those of the manifest in an object store."""
    files = world.under("sft")
    if kind == "posix":
        return {name: data for name, data in files.items() if name.endswith(".parquet")}
    names = (
        [shard["name"] for shard in json.loads(files["_manifest.json"])["shards"]] if "_manifest.json" in files else []
    )
    return {name: files.get(name) for name in names}


class Reader:
    """Looks at the public folder after every change; whole holds every publication that may be seen."""

    def __init__(self, kind, world, whole):
        self.kind, self.world, self.whole, self.looks = kind, world, whole, 0

    def __call__(self):
        self.looks += 1
        seen = _published(self.kind, self.world)
        assert not seen or seen in self.whole, sorted(seen)


def _start(kind, *, has_earlier) -> World:
    """An empty run, or one whose earlier driver published two of the four rows."""
    world = World()
    if has_earlier:
        assert _run(kind, world, is_complete=False) is None
    return world


def _reference(kind):
    world = World()
    assert _run(kind, world) is None
    assert publish.verify(store_on(kind, world), "sft") == []
    return world.under("sft")


def _settle(kind, world, reader, *, faults=None, order=ORDERS[0]) -> Process:
    """Run again until done, the first time with faults; at most 3 lives may be needed.

    Without faults the outcome is a function of the world, so each state is settled once and remembered.
    """
    state = (kind, order, len(reader.whole), world.state()) if not faults else None
    if state in SETTLED:
        world.become(SETTLED[state])
        return Process()
    first = Process(faults=faults or {}, watch=reader)
    ended = _run(kind, world, first, order=order)
    for _ in range(2):
        if ended is not None:
            ended = _run(kind, world, Process(watch=reader), order=order)
    assert ended is None, ended
    if state:
        SETTLED[state] = world.copy()
    return first


def _check_done(kind, world, reference):
    assert world.under("sft") == reference
    if kind == "posix":
        assert not [path for path in world.under("work/publish") if ".tmp-" not in path]


def _every(steps):
    """(step, fault) for every step of a life."""
    return [(number, fault) for number, step in enumerate(steps) for fault in faults_for(step)]


def _spread(steps):
    """A crash after each change, and one fault or so at each step, so that each kind of step meets each of its faults.

    No state that a crash can leave is left out: a crash before a step leaves what the change before it left.
    """
    picked = []
    for kind in dict.fromkeys(steps):
        numbers, faults = [number for number, step in enumerate(steps) if step == kind], faults_for(kind)
        for turn, fault in enumerate(faults):
            each = fault in ("crash after", "torn")
            chosen = numbers if each else numbers[turn % len(numbers) :: len(faults)]
            picked += [(number, fault) for number in chosen]
    return picked


def _points(kind, world, order, pick=_every):
    """What is picked of the steps of an undisturbed life on the world."""
    undisturbed = Process()
    assert _run(kind, world.copy(), undisturbed, order=order) is None
    return pick(undisturbed.steps)


def _one_point(kind, start, number, fault, *, order, whole, reference, second=None) -> Process:
    """One life with a fault, then again until done. second: faults of the driver that takes over in a slow step."""
    world = start.copy()
    reader = Reader(kind, world, whole)
    process = Process(faults={number: fault}, watch=reader)
    process.takeover = lambda: (
        _run(kind, world, Process(faults=second, watch=reader)) if second else _settle(kind, world, reader, order=order)
    )
    ended = _run(kind, world, process, order=order)
    assert ended is None or isinstance(ended, CrashError | StageError | FencedError), ended
    if fault == "slow" and not second:  # whatever this one still did after the newer driver's end changed nothing
        assert _published(kind, world) == whole[0]
    assert fault != "no space" or ended is None or "no space left" in str(ended)
    if ended is not None or process.hit == ["slow"]:
        _settle(kind, world, reader, order=order)
    _check_done(kind, world, reference)
    return process


def _sweep(points, capsys, title):
    """Runs the points, given as keyword arguments of _one_point; each that is armed must be hit."""
    armed, hit = 0, Counter()
    for point in points:
        armed += 1
        hit.update(_one_point(**point).hit)
    with capsys.disabled():
        print(f"\n{title}: {armed} points armed, {hit.total()} hit: {dict(hit)}")
    assert armed == hit.total()
    return armed


def _single_points(kind, orders, *, pick=_every):
    reference = _reference(kind)
    for has_earlier, order in itertools.product((False, True), orders):
        start = _start(kind, has_earlier=has_earlier)
        earlier = [_published(kind, start)] if has_earlier else []
        whole = [_published(kind, _as_world(reference)), *earlier]
        for number, fault in _points(kind, start, order, pick):
            point = {"kind": kind, "start": start, "number": number, "fault": fault}
            yield {**point, "order": order, "whole": whole, "reference": reference}


def _pair_points(kind, order=ORDERS[0], *, stride=1):
    """A fault during the recovery from a fault: every step of the recovery from every state a first one leaves."""
    seen = set()
    for first in itertools.islice(_single_points(kind, (order,)), 0, None, stride):
        world = first["start"].copy()
        _run(kind, world, Process(faults={first["number"]: first["fault"]}), order=order)
        if first["fault"] != "slow" and world.state() not in seen:
            seen.add(world.state())
            for number, fault in _points(kind, world, order):
                yield {**first, "start": world, "number": number, "fault": fault}


def _takeover_points(kind, order=ORDERS[0]):
    """A newer driver begins at each step of an older one, and crashes at each of its own; the older one goes on."""
    for first in _single_points(kind, (order,)):
        if first["fault"] == "slow":
            for number, fault in _points(kind, first["start"], order):
                if fault in ("crash before", "crash after", "torn"):
                    yield {**first, "second": {number: fault}}


def _as_world(public) -> World:
    return World(files={f"/run/sft/{name}": data for name, data in public.items()})


def _least(*counts):
    """For each kind of store, the number of points that its sweep has at least."""
    return pytest.mark.parametrize(("kind", "least"), list(zip(KINDS, counts, strict=True)))


@_least(200, 70, 70)
def test_any_single_fault_leaves_the_undisturbed_result(kind, least, capsys):
    assert _sweep(_single_points(kind, ORDERS[:1], pick=_spread), capsys, f"single, {kind}") > least


@_least(60, 18, 17)
def test_a_fault_during_recovery_leaves_the_undisturbed_result(kind, least, capsys):
    points = itertools.islice(_pair_points(kind, stride=89), 0, None, 29 if kind == "posix" else 13)
    assert _sweep(points, capsys, f"some pairs, {kind}") > least


@pytest.mark.slow
@_least(2000, 730, 710)
def test_single_faults_with_blocks_in_any_order_leave_the_undisturbed_result(kind, least, capsys):
    assert _sweep(_single_points(kind, ORDERS), capsys, f"single in any order, {kind}") > least


@pytest.mark.long
@_least(25_000, 1900, 1870)
def test_every_pair_of_faults_leaves_the_undisturbed_result(kind, least, capsys):
    assert _sweep(_pair_points(kind), capsys, f"pairs, {kind}") > least


@pytest.mark.slow
@_least(480, 65, 60)
def test_a_newer_driver_that_crashes_in_an_older_ones_life_leaves_the_undisturbed_result(kind, least, capsys):
    points = itertools.islice(_takeover_points(kind), 0, None, 40)
    assert _sweep(points, capsys, f"every 40th takeover that crashes, {kind}") > least


@pytest.mark.long
@_least(6400, 885, 835)
def test_a_newer_driver_that_crashes_anywhere_in_an_older_ones_life_leaves_the_undisturbed_result(kind, least, capsys):
    points = itertools.islice(_takeover_points(kind), 0, None, 3)
    assert _sweep(points, capsys, f"every 3rd takeover that crashes, {kind}") > least


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("has_earlier", [False, True])
@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_when_engines_differ_the_newest_drivers_publication_stands_and_mixes_nothing(kind, has_earlier, stride):
    """The newer driver begins at each step of the older one; in the fast tests at the odd or the even ones."""
    start = _start(kind, has_earlier=has_earlier)
    steps = [number for number, fault in _points(kind, start, ORDERS[0]) if fault == "slow"]
    for number in steps[has_earlier % stride :: stride]:
        world = start.copy()
        after_takeover = {}

        def take_over(world=world, after_takeover=after_takeover):
            assert _run(kind, world, engine="newer", again=True) is None
            after_takeover.update(_published(kind, world))

        zombie = Process(faults={number: "slow"}, takeover=take_over)
        ended = _run(kind, world, zombie, engine="older")
        assert zombie.hit == ["slow"]
        assert ended is None or isinstance(ended, FencedError), ended
        assert _published(kind, world) == after_takeover
        problems = publish.verify(store_on(kind, world), "sft")
        assert all("is not in the manifest" in problem for problem in problems), problems
        tables = list(publish.read_batches(store_on(kind, world), "sft", 10))
        assert pa.concat_tables(tables)["id"].to_pylist() == list(IDS)


def test_two_hundred_pairs_of_racing_drivers_never_share_an_epoch():
    for kind in KINDS:
        world = World()
        for _ in range(70):
            other = []
            store = store_on(kind, world)
            process = Process(faults={1: "slow"}, takeover=lambda s=store, o=other: o.append(commit.take_epoch(s, {})))
            mine = commit.take_epoch(store_on(kind, world, process), {})
            assert mine.number == other[0].number + 1
