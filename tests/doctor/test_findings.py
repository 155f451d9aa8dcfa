"""`moaa doctor`: what the facts of nodes come to, and one examination of a real cluster of two nodes."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from moaa_ray.doctor.facts import NodeFacts, collect
from moaa_ray.doctor.findings import findings, text_of, unfit

GIB = 2**30
VERSIONS = {"python": "3.11", "ray": "2.60.0", "vllm": "0.32.0"}
WELL = NodeFacts(
    name="a",
    versions=VERSIONS,
    num_gpus=8,
    gpus=("NVIDIA H100",) * 8,
    shm_bytes=64 * GIB,
    shm_free_bytes=60 * GIB,
    memory_bytes=1000 * 10**9,
    store_bytes=60 * 10**9,
    store_folder="/dev/shm",
    disk_free_bytes=10**12,
    ports={"GCS of the head (10.0.0.1:6379)": True, "dashboard and job server (127.0.0.1:8265)": True},
)


def found(*nodes: NodeFacts, driver: NodeFacts = WELL, run_dir: str = "s3://b/run", wants_gpus: bool = True) -> dict:
    return {
        each.what: (each.grade, each.told) for each in findings(driver, nodes, run_dir=run_dir, wants_gpus=wants_gpus)
    }


def test_a_cluster_that_is_well_says_what_it_has():
    told = found(WELL, replace(WELL, name="b"))
    assert {grade for grade, _ in told.values()} == {"ok"}
    assert list(told) == [
        "nodes", "versions", "GPUs", "shared memory", "object store", "disk", "clocks", "ports", "storage",
    ]  # fmt: skip
    assert told["object store"][1] == "60.0 to 60.0 GB in /dev/shm, at most 6% of a node's memory"
    assert told["ports"][1] == "the head's answer every node, all nodes' answer here; the dashboard"
    assert told["GPUs"][1] == "16 x NVIDIA H100 on 2 nodes"


@pytest.mark.parametrize(
    ("fields", "what", "grade", "told"),
    [
        ({"versions": {**VERSIONS, "ray": "2.59.0"}}, "versions", "fail", "ray 2.60.0 here, but 2.59.0 on b"),
        ({"versions": {"python": "3.11", "ray": "2.60.0"}}, "versions", "fail", "but not installed on b"),
        ({"gpus": ()}, "GPUs", "fail", "8 in Ray and 0 in nvidia-smi on b"),
        ({"num_gpus": 0}, "GPUs", "fail", "0 in Ray and 8 in nvidia-smi on b"),
        (
            {"shm_bytes": 64 * 2**20, "store_bytes": 2**20},
            "shared memory",
            "warn",
            "64 MiB on b, under 2 GiB; give containers --shm-size",
        ),
        (
            {"store_folder": "/tmp"},
            "object store",
            "warn",
            "60.0 GB in /tmp on b, as /dev/shm is too small for it; make /dev/shm larger, or",
        ),
        ({"store_bytes": 70 * 10**9}, "object store", "warn", "70.0 GB in /dev/shm on b, as /dev/shm is too small"),
        ({"memory_bytes": 100 * 10**9}, "object store", "warn", "60% of the memory on b, and engines need the rest"),
        (
            {"ports": {"GCS of the head (10.0.0.1:6379)": False}},
            "ports",
            "fail",
            "no GCS of the head (10.0.0.1:6379) on b; let nodes reach each other on all ports of Ray",
        ),
        (
            {"ports": {"metrics of c (10.0.0.3:1)": False, "dashboard and job server (h:8265)": False}},
            "ports",
            "warn",
            "no metrics of c (10.0.0.3:1) on b, 2 ports in all; let this machine reach it",
        ),
        ({"disk_free_bytes": 10**9}, "disk", "warn", "1.0 GB free on b, under 20 GB"),
        ({"clock_s": -90.0}, "clocks", "warn", "-90 s on b from here"),
        ({"storage_error": "PermissionError: no"}, "storage", "fail", "s3://b/run: PermissionError: no on b; use a"),
        ({"lost": "no answer within 120 s"}, "nodes", "fail", "1 of 2 do nothing: no answer within 120 s on b"),
    ],
)
def test_what_is_wrong_with_one_node_is_told_with_its_name_and_the_way_out(fields, what, grade, told):
    seen = found(WELL, replace(WELL, name="b", **fields))
    assert seen[what][0] == grade
    assert told in seen[what][1]
    assert [name for name, (graded, _) in seen.items() if graded != "ok"] == [what]


def test_the_disk_is_that_of_the_session_and_of_what_is_spilled(tmp_path, monkeypatch):
    """A task's parent is the raylet, whose command line names the folders; here it is a stand-in of this process."""
    script = tmp_path / "raylet.py"
    script.write_text(
        "from moaa_ray.doctor.facts import collect\nimport os, sys\n"
        "pid = os.fork()\nif pid == 0:\n    facts = collect('a')\n"
        "    print(facts.store_folder, facts.disk_free_bytes)\n"
        "else:\n    os.waitpid(pid, 0)\n"
    )
    command = [sys.executable, str(script), "--plasma_directory=/tmp", f"--session_dir={tmp_path}"]
    other = shutil.disk_usage("/dev/shm").free
    told = subprocess.run(
        [*command, "--fallback_directory=/dev/shm"], capture_output=True, text=True, check=True
    ).stdout
    folder, free = told.split()
    assert folder == "/tmp"
    assert int(free) == pytest.approx(min(other, shutil.disk_usage(tmp_path).free), rel=0.05)


def test_a_node_connects_to_ports_and_tells_its_memory():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ports = collect("a", ports={"open": ("127.0.0.1", port)}).ports
    facts = collect("a", ports={"shut": ("127.0.0.1", port)}, store_bytes=7)
    assert (ports, facts.ports, facts.store_bytes) == ({"open": True}, {"shut": False}, 7)
    assert 2**20 < facts.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_gpus_are_missed_only_by_a_recipe_that_wants_them():
    bare = replace(WELL, num_gpus=0, gpus=())
    assert found(bare)["GPUs"][0] == "fail"
    assert found(bare, wants_gpus=False)["GPUs"] == ("ok", "none; endpoints, fakes and small models on CPUs only")


def test_of_many_nodes_three_are_named():
    bad = [replace(WELL, name=f"n{i}", clock_s=60.0) for i in range(10)]
    assert "+60 s on n2 and 7 more" in found(*bad)["clocks"][1]


def test_the_lines_stand_under_each_other():
    lines = text_of(findings(WELL, [WELL], run_dir="", wants_gpus=False)).splitlines()
    assert lines[0] == "ok    nodes          1 that work"
    assert lines[-1].startswith("ok    storage        not tried")


def test_a_node_writes_into_the_run_directory_and_looks_for_what_the_driver_wrote(tmp_path):
    driver = collect("driver", run_dir=str(tmp_path / "run"))
    assert driver.storage_error == ""
    assert collect("a", run_dir=str(tmp_path / "run"), probe="driver").storage_error == ""
    assert "another disk" in collect("a", run_dir=str(tmp_path / "other"), probe="driver").storage_error
    (tmp_path / "file").write_text("x")
    assert "Error" in collect("a", run_dir=str(tmp_path / "file" / "run")).storage_error


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"versions": {**VERSIONS, "vllm": "0.31.0"}},
            "vllm 0.32.0 here, but 0.31.0 on b; install the same on every node",
        ),
        ({"versions": {**VERSIONS, "ray": "2.59.0"}}, "ray 2.60.0 here, but 2.59.0 on b; install the same"),
        (
            {"storage_error": "PermissionError: no"},
            "run_dir = s3://b/run: PermissionError: no on b; use a bucket or a disk",
        ),
        ({"versions": {"python": "3.11", "ray": "2.60.0"}}, ""),
        ({"versions": {**VERSIONS, "torch": "2.0"}, "shm_bytes": 0, "gpus": ()}, ""),
        ({"lost": "no answer within 120 s", "versions": {}}, ""),
    ],
)
def test_a_stage_refuses_nodes_that_would_ruin_it_and_no_others(fields, told):
    """A node without an engine, with little memory or without an answer may still be of use, or in nobody's way."""
    assert unfit(WELL, [WELL, replace(WELL, name="b", **fields)], run_dir="s3://b/run").startswith(told)
    assert bool(unfit(WELL, [WELL, replace(WELL, name="b", **fields)], run_dir="s3://b/run")) == bool(told)
