"""The Kubernetes documents of cluster/kuberay as they lie in the repository, and the pods in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
KUSTOMIZATIONS = sorted(KUBERAY.rglob("kustomization.yaml"))
RENDERED = sorted(path.parent for path in KUSTOMIZATIONS if path.parent.name not in ("base", "kueue"))
FILES = sorted(path for path in KUBERAY.rglob("*.yaml") if path.name != "kustomization.yaml")


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One group of pods of a RayJob, RayCluster or RayService."""

    name: str
    is_head: bool
    group: dict[str, Any]
    document: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return self.group["template"]["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.group["template"]["metadata"]["labels"]

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        return only


@cache
def documents_in(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def all_documents() -> list[dict[str, Any]]:
    return [document for path in FILES for document in documents_in(path)]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for document in all_documents() if document["kind"] in kinds]


def ray_spec(document: dict[str, Any]) -> dict[str, Any]:
    inside = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return document["spec"][inside] if inside else document["spec"]


def pods_of(document: dict[str, Any]) -> Iterator[Pod]:
    spec, name = ray_spec(document), document["metadata"]["name"]
    yield Pod(name=f"{name} head", is_head=True, group=spec["headGroupSpec"], document=document)
    for group in spec["workerGroupSpecs"]:
        yield Pod(name=f"{name} {group['groupName']}", is_head=False, group=group, document=document)


RAY_DOCUMENTS = of_kind("RayJob", "RayCluster", "RayService")
PODS = [pod for document in RAY_DOCUMENTS for pod in pods_of(document)]


def reached_from(folder: Path) -> list[dict[str, Any]]:
    """The documents that a kustomization takes in, itself and through the folders it names."""
    found = []
    config = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for name in [*config.get("resources", []), *config.get("components", [])]:
        path = folder / name
        found += reached_from(path) if path.is_dir() else documents_in(path)
    return found
