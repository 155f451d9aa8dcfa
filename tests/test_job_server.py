"""Jobs on a real cluster of a head without workloads and two nodes: submitted, followed, stopped, submitted again."""

import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.submission import follow, submit
from tests.engines.endpoint import Endpoint
from tests.generation import kills, runs
from tests.test_submission import RECIPE, asked

pytestmark = pytest.mark.slow

CANARY = "sk-canary-9a7c41e8d2"
NUM_ROWS = 120


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """Where the cluster keeps its logs; a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="moaa-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def job_server(session):
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # a job says `python`, and means this one
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("JUDGE_KEY", CANARY)  # as a Kubernetes secret reaches a node
        head = {"include_dashboard": True, "dashboard_port": free_ports(1)[0], "num_cpus": 0, "temp_dir": str(session)}
        agents = iter(free_ports(3))  # each node has one that takes jobs, and Ray gives all the same port
        cluster = Cluster(initialize_head=True, head_node_args=head | {"dashboard_agent_listen_port": next(agents)})
        for port in agents:
            cluster.add_node(num_cpus=2, dashboard_agent_listen_port=port)
        # as `ray start --head` does; else jobs would go to any cluster of this machine
        write_ray_address(cluster.address, str(session))
    yield f"http://127.0.0.1:{head['dashboard_port']}"
    cluster.shutdown()


def free_ports(num: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def client(address: str):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


def test_a_job_runs_to_its_end_and_again_finds_it_finished(job_server, tmp_path):
    said: list[str] = []
    this = asked(tmp_path, f"run_dir={tmp_path}/run", address=job_server)
    for _ in range(2):
        job_id = submit(this)
        assert follow(job_server, job_id, said.append) == 0
    assert re.fullmatch(r"moaa-small-\d{8}-\d{6}-[0-9a-f]{4}", job_id)
    assert (tmp_path / "run" / "sft" / "_manifest.json").exists()
    assert "".join(said).count("2 prompts = 2 ok") == 2


@pytest.mark.parametrize("path", ["gone.jsonl", "runs/excluded.jsonl"])
def test_a_job_that_fails_brings_its_exit_code_and_its_reason_back(job_server, tmp_path, path):
    said: list[str] = []
    this = asked(tmp_path, f"run_dir={tmp_path}/run", f"prompts.sources.0.path={path}", address=job_server)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "excluded.jsonl").write_text('{"prompt": "here alone"}\n', encoding="utf-8")
    assert follow(job_server, submit(this), said.append) == 2
    assert path in "".join(said)


def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(job_server, tmp_path):
    run_dir = tmp_path / "run"
    models = {"a": {"engine": "fake", "tokens_per_s": 800, "concurrency": 4}, "b": {"engine": "fake"}}
    generate = {"block_rows": 8}
    recipe = RECIPE | {"models": models, "generate": generate}
    this = asked(tmp_path, f"run_dir={run_dir}", recipe=recipe, address=job_server)
    runs.write_prompts(tmp_path / "prompts.jsonl", NUM_ROWS)
    first = submit(this)
    kills.wait_until(lambda: runs.num_blocks(run_dir) >= 2)
    with pytest.raises(ConfigError, match=f"job {first} works on it; follow it with `RAY_API_SERVER_ADDRESS=http"):
        submit(this)
    client(job_server).stop_job(first)
    assert follow(job_server, first, lambda text: None) == 1
    kept = blocks(run_dir)
    assert 16 <= sum(kept.values()) < NUM_ROWS
    said: list[str] = []
    assert follow(job_server, submit(this), said.append) == 0
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in "".join(said)
    assert [row["id"] for row in runs.rows(run_dir)] == [f"r{i:05d}" for i in range(NUM_ROWS)]
    assert kept.items() <= blocks(run_dir).items(), "what the first job had committed was not asked again"
    assert sum(blocks(run_dir).values()) == NUM_ROWS


def blocks(run_dir: Path) -> dict[str, int]:
    """The committed blocks of rows at the end of the line, and how many rows each holds."""
    found = run_dir.glob("work/generate/*/e*/*.parquet")
    return {str(path): pq.read_metadata(path).num_rows for path in found if not path.name.startswith("new-")}


@contextlib.contextmanager
def endpoint(**behaviour) -> Iterator[Endpoint]:
    """A server of its own in a thread of its own."""
    served, ready, over = Endpoint(**behaviour), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with served.serve():
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


def test_a_key_of_the_clusters_environment_reaches_the_endpoint_alone(job_server, session, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)  # who submits does not have it
    with endpoint(key=CANARY, window=8192) as served:
        hosted = {"engine": "openai", "model": "fake", "base_url": served.url, "api_key": "${JUDGE_KEY}"}
        models = {"a": hosted, "b": {"engine": "fake"}}
        this = asked(tmp_path, f"run_dir={tmp_path}/run", recipe=RECIPE | {"models": models}, address=job_server)
        job_id = submit(this)
        said: list[str] = []
        assert follow(job_server, job_id, said.append) == 0
        assert len(served.bodies) == 2
    assert CANARY not in "".join(said) + repr(client(job_server).get_job_info(job_id))
    written = [path for folder in (tmp_path, session) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == f"job-driver-{job_id}.log" for path in written)
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
