"""The Kubernetes documents of cluster/kuberay as they lie in the repository, and the pods in them."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
MONITORING = ROOT / "cluster" / "monitoring"
_ALL = sorted([*KUBERAY.rglob("*.yaml"), *MONITORING.rglob("*.yaml")])
KUSTOMIZATIONS = [path for path in _ALL if path.name == "kustomization.yaml"]
FILES = [path for path in _ALL if path.name != "kustomization.yaml"]


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


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))


RENDERED = [p.parent for p in KUSTOMIZATIONS if config_of(p.parent)["kind"] != "Component" and p.parent.name != "base"]
"""What `kubectl apply -k` is given."""


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
    config = config_of(folder)
    for name in [*config.get("resources", []), *config.get("components", [])]:
        path = folder / name
        found += reached_from(path) if path.is_dir() else documents_in(path)
    return found


def assembled(folder: Path) -> list[dict[str, Any]]:
    """What a kustomization makes, but for images, by as much of kustomize as is used. A test holds it to kubectl."""
    return [document for document in _assembled(folder) if LOCAL not in document["metadata"].get("annotations", {})]


LOCAL = "config.kubernetes.io/local-config"
"""Says that a document is read while rendering, and no part of what comes out."""


def _assembled(folder: Path) -> list[dict[str, Any]]:
    config, found = config_of(folder), []
    for name in config.get("resources", []):
        path = folder / name
        found += _assembled(path) if path.is_dir() else copy.deepcopy(documents_in(path))
    for name in config.get("components", []):
        component = config_of(folder / name)
        found += _assembled(folder / name)
        found += [_config_map(folder / name, made) for made in component.get("configMapGenerator", [])]
        for patch in component.get("patches", []):
            for operation in yaml.safe_load(patch["patch"]):
                for document in _chosen(found, patch["target"]):
                    *place, last = operation["path"].split("/")[1:]
                    if last == "-":
                        _at(document, place).append(copy.deepcopy(operation["value"]))
                    else:
                        _at(document, place)[last] = copy.deepcopy(operation["value"])
        for replacement in component.get("replacements", []):
            _replace(found, replacement)
    return found


def _replace(documents: list[dict[str, Any]], replacement: dict[str, Any]) -> None:
    *place, last = replacement["source"]["fieldPath"].split(".")
    (source,) = (d for d in documents if d["kind"] == replacement["source"]["kind"])
    for target in replacement["targets"]:
        for document in _chosen(documents, target["select"]):
            for path in target["fieldPaths"]:
                *to, end = path.split(".")
                value = _at(source, place)[last]
                if options := target.get("options"):
                    words = _at(document, to)[end].split(options["delimiter"])
                    words[options["index"]] = value
                    value = options["delimiter"].join(words)
                _at(document, to)[end] = value


def _chosen(documents: list[dict[str, Any]], target: dict[str, str]) -> list[dict[str, Any]]:
    api = f"{target['group']}/{target['version']}"
    return [d for d in documents if (d["apiVersion"], d["kind"]) == (api, target["kind"])]


def _at(document: Any, place: list[str]) -> Any:
    for name in place:
        document = document[int(name)] if isinstance(document, list) else document.setdefault(name, {})
    return document


def _config_map(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    data = {name: (folder / name).read_text(encoding="utf-8") for name in made["files"]}
    metadata = {"name": made["name"], "namespace": made["namespace"], "labels": made["options"]["labels"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
