"""From the facts of all nodes to one line for each thing that a run hangs on, with the way out. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from moaa_ray.doctor.facts import SHM, NodeFacts

MIN_SHM_BYTES = 2 * 2**30
"""NCCL and vLLM's processes exchange through shared memory; Kubernetes gives a pod 64 MiB unless told otherwise."""
MIN_DISK_BYTES = 20 * 10**9
"""Room for what Ray spills and for one small model's weights; an assumption."""
MAX_STORE_PART = 0.5
"""Of a node's memory, for the object store: engines and training take the rest; Ray's own default is 0.3."""
MAX_CLOCK_S = 5.0
"""Clocks further apart make metrics and time left unreadable; nothing else depends on them."""
_MUST_AGREE = ("python", "ray", "vllm", "moaa_ray")
_TO_LOOK_AT = ("dashboard", "metrics")
"""How the names of ports begin over which no rows and no work go."""
_SAME_EVERYWHERE = "install the same on every node, e.g. with the image of cluster/Dockerfile"

Grade = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    grade: Grade
    what: str
    told: str


def findings(driver: NodeFacts, nodes: Sequence[NodeFacts], *, run_dir: str, wants_gpus: bool) -> list[Finding]:
    """Every finding, in the order in which one would mend them. driver: the process that will run the stages."""
    known = [node for node in nodes if not node.lost]
    found = [_nodes(nodes)]
    if known:
        found += [_versions(driver, known), _gpus(known, wants_gpus=wants_gpus), *_room(known), _clocks(known)]
        found += [_ports([driver, *known]), _storage([driver, *known], run_dir)]
    return found


def unfit(driver: NodeFacts, nodes: Sequence[NodeFacts], *, run_dir: str) -> str:
    """Why no stage can run on these nodes: versions that differ, a run directory that some do not see; or nothing.

    A package that a node lacks is no reason: not every node loads models.
    """
    known = [node for node in nodes if not node.lost]
    wrong = []
    for package in _MUST_AGREE:
        version = driver.versions.get(package)
        others = [node for node in known if version and node.versions.get(package, version) != version]
        if others:
            wrong.append(f"{package} {version} here, but {_some(others, lambda node, p=package: node.versions[p])}")
    if wrong:
        return f"{'; '.join(wrong)}; {_SAME_EVERYWHERE}"
    storage = _storage([driver, *known], run_dir)
    return f"run_dir = {storage.told}" if storage.grade == "fail" else ""


def text_of(found: Sequence[Finding]) -> str:
    """One line each."""
    width = max(len(each.what) for each in found)
    return "\n".join(f"{each.grade:<4}  {each.what:<{width}}  {each.told}" for each in found)


def _nodes(nodes: Sequence[NodeFacts]) -> Finding:
    lost = [node for node in nodes if node.lost]
    if lost:
        told = f"{len(lost)} of {len(nodes)} do nothing: {_some(lost, lambda node: node.lost)}"
        return Finding(grade="fail", what="nodes", told=f"{told}; see their Ray logs, or remove them")
    return Finding(grade="ok", what="nodes", told=f"{len(nodes)} that work")


def _versions(driver: NodeFacts, nodes: Sequence[NodeFacts]) -> Finding:
    wrong = []
    for package, version in driver.versions.items():
        others = [node for node in nodes if node.versions.get(package) != version]
        if others:
            told = _some(others, lambda node, p=package: node.versions.get(p, "not installed"))
            wrong.append(f"{package} {version} here, but {told}")
    if wrong:
        return Finding(grade="fail", what="versions", told=f"{'; '.join(wrong)}; {_SAME_EVERYWHERE}")
    told = ", ".join(f"{package} {version}" for package, version in driver.versions.items())
    return Finding(grade="ok", what="versions", told=told)


def _gpus(nodes: Sequence[NodeFacts], *, wants_gpus: bool) -> Finding:
    hidden = [node for node in nodes if len(node.gpus) < node.num_gpus or (node.gpus and not node.num_gpus)]
    if hidden:
        told = _some(hidden, lambda node: f"{node.num_gpus} in Ray and {len(node.gpus)} in nvidia-smi")
        way_out = "start the node with --num-gpus as many as it has, and give its container the GPUs"
        return Finding(grade="fail", what="GPUs", told=f"{told}; {way_out}")
    num = sum(node.num_gpus for node in nodes)
    if num:
        kinds = Counter(name for node in nodes for name in node.gpus)
        told = ", ".join(f"{count} x {name}" for name, count in sorted(kinds.items()))
        return Finding(grade="ok", what="GPUs", told=f"{told or num} on {sum(n.num_gpus > 0 for n in nodes)} nodes")
    if wants_gpus:
        way_out = "add nodes with GPUs, or set device: cpu for models that are small"
        return Finding(
            grade="fail", what="GPUs", told=f"the recipe has models with device: gpu, the cluster none; {way_out}"
        )
    return Finding(grade="ok", what="GPUs", told="none; endpoints, fakes and small models on CPUs only")


def _room(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    small = [node for node in nodes if node.shm_bytes < MIN_SHM_BYTES]
    if small:
        told = _some(small, lambda node: f"{node.shm_bytes / 2**20:,.0f} MiB")
        way_out = "give containers --shm-size, pods an emptyDir of medium Memory at /dev/shm"
        yield Finding(
            grade="warn", what="shared memory", told=f"{told}, under {MIN_SHM_BYTES / 2**30:g} GiB; {way_out}"
        )
    else:
        least = min(node.shm_free_bytes for node in nodes)
        yield Finding(grade="ok", what="shared memory", told=f"at least {least / 2**30:,.1f} GiB free on every node")
    yield _store(nodes)
    full = [node for node in nodes if node.disk_free_bytes < MIN_DISK_BYTES]
    if full:
        told = _some(full, lambda node: f"{node.disk_free_bytes / 1e9:,.1f} GB free")
        way_out = "free some, or start Ray with --temp-dir on a larger disk"
        yield Finding(grade="warn", what="disk", told=f"{told}, under {MIN_DISK_BYTES / 1e9:g} GB; {way_out}")
    else:
        least = min(node.disk_free_bytes for node in nodes)
        yield Finding(grade="ok", what="disk", told=f"at least {least / 1e9:,.0f} GB free on every node")


def _store(nodes: Sequence[NodeFacts]) -> Finding:
    what = "object store"
    outside = [node for node in nodes if node.store_folder not in ("", SHM) or node.store_bytes > node.shm_bytes]
    if outside:
        told = _some(outside, lambda node: f"{node.store_bytes / 1e9:,.1f} GB in {node.store_folder or SHM}")
        way_out = f"make {SHM} larger, or start Ray with a smaller --object-store-memory"
        return Finding(grade="warn", what=what, told=f"{told}, as {SHM} is too small for it; {way_out}")
    large = [node for node in nodes if node.store_bytes > MAX_STORE_PART * node.memory_bytes]
    if large:
        told = _some(large, lambda node: f"{node.store_bytes / node.memory_bytes:.0%} of the memory")
        way_out = "start Ray with a smaller --object-store-memory"
        return Finding(grade="warn", what=what, told=f"{told}, and engines need the rest; {way_out}")
    sizes = [node.store_bytes / 1e9 for node in nodes]
    part = max(node.store_bytes / max(1, node.memory_bytes) for node in nodes)
    told = f"{min(sizes):,.1f} to {max(sizes):,.1f} GB in {SHM}, at most {part:.0%} of a node's memory"
    return Finding(grade="ok", what=what, told=told)


def _ports(nodes: Sequence[NodeFacts]) -> Finding:
    """The first of the nodes is the driver's process."""
    shut = [node for node in nodes if not all(node.ports.values())]
    if not shut:
        there = any(name.startswith(_TO_LOOK_AT[0]) for name in nodes[0].ports)
        told = f"the head's answer every node, all nodes' answer here; {'the' if there else 'no'} dashboard"
        return Finding(grade="ok", what="ports", told=told)
    closed = {name for node in shut for name, is_open in node.ports.items() if not is_open}
    told = _some(shut, lambda node: f"no {next(name for name, is_open in node.ports.items() if not is_open)}")
    told += f", {len(closed)} ports in all" if len(closed) > 1 else ""
    if all(name.startswith(_TO_LOOK_AT) for name in closed):
        way_out = "let this machine reach it, or forward it, to submit jobs and to look at metrics"
        return Finding(grade="warn", what="ports", told=f"{told}; {way_out}")
    way_out = "let nodes reach each other on all ports of Ray (firewall, network policy, security group)"
    return Finding(grade="fail", what="ports", told=f"{told}; {way_out}")


def _clocks(nodes: Sequence[NodeFacts]) -> Finding:
    off = [node for node in nodes if abs(node.clock_s) > MAX_CLOCK_S]
    if off:
        told = _some(off, lambda node: f"{node.clock_s:+,.0f} s")
        return Finding(grade="warn", what="clocks", told=f"{told} from here; set them by NTP")
    furthest = max(abs(node.clock_s) for node in nodes)
    return Finding(grade="ok", what="clocks", told=f"within {furthest:.1f} s of here")


def _storage(nodes: Sequence[NodeFacts], run_dir: str) -> Finding:
    if not run_dir:
        return Finding(grade="ok", what="storage", told="not tried: name a recipe, whose run_dir it would be")
    blind = [node for node in nodes if node.storage_error]
    if blind:
        told = f"{run_dir}: {_some(blind, lambda node: node.storage_error)}"
        way_out = "use a bucket or a disk that all nodes share, and give every node the rights to it"
        return Finding(grade="fail", what="storage", told=f"{told}; {way_out}")
    return Finding(grade="ok", what="storage", told=f"{run_dir} can be read and written from every node")


def _some(nodes: Sequence[NodeFacts], told: Callable[[NodeFacts], str]) -> str:
    """What is to be told of the first nodes, and how many more there are."""
    text = ", ".join(f"{told(node)} on {node.name}" for node in nodes[:3])
    return text + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
