"""The Dockerfile builds what the manifests run: the same Python and packages, no root, nothing but what is needed."""

import re
import tomllib

import pytest

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


def test_the_cpu_image_holds_the_pinned_packages_and_the_gpu_image_the_pinned_ray():
    cpu, gpu = " ".join(stages()["cpu"]), " ".join(stages()["gpu"])
    assert "pip install --no-deps -r requirements/cpu.txt" in cpu
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', gpu)
    # cpu is the other target's, dev is for tests, mlflow wants older packages than Ray's
    assert set(extras.split(",")) == PROJECT["project"]["optional-dependencies"].keys() - {"cpu", "dev", "mlflow"}
    assert "grep '^ray==' requirements/cpu.txt > /tmp/constraints.txt" in gpu
    assert "--constraint /tmp/constraints.txt" in gpu


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
    assert {"moaa_ray", "jobs", "pyproject.toml", "requirements/cpu.txt"} <= copied
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
