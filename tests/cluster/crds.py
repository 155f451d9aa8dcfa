"""What KubeRay's own schemas say of a document. They lie beside the repository."""

from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.documents import ROOT

CRDS = ROOT.parent / "shared" / "kuberay-crds"


@cache
def schema(kind: str) -> dict[str, Any]:
    """The CRD's schema; unlike the API server, which drops fields it does not know, this refuses them."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: the CRDs lie beside the repository, not in it")
    crd = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # the same as safe_load, ten times as fast
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(part: Any) -> Any:
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    result = {key: closed(value) for key, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


def problems_of(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(schema(document["kind"]))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]
