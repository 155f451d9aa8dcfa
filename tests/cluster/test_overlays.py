"""What `kubectl apply -k` is given keeps its promises after components have changed it."""

import copy
import shlex
from pathlib import Path

import pytest

from moaa_ray.loading import load_preference, load_recipe, load_training
from tests.cluster.crds import problems_of
from tests.cluster.documents import KUBERAY, RENDERED, ROOT, assembled

CORE = ("v1", "policy/v1", "networking.k8s.io/v1")
STAGES = KUBERAY / "overlays" / "gpu-stages"
ORDER = {
    "generate": ("generate", load_recipe),
    "sft": ("train sft", load_training),
    "sample": ("sample", load_preference),
    "judge": ("judge", load_preference),
    "dpo": ("train dpo", load_training),
    "evaluate": ("evaluate", load_preference),
}
"""The stages of a run in their order: the command of each, and what it reads its recipe with."""
every_overlay = pytest.mark.parametrize("folder", RENDERED, ids=lambda folder: str(folder.relative_to(KUBERAY)))


@every_overlay
def test_ray_documents_are_valid_by_the_crds_of_kuberay_as_they_are_applied(folder: Path):
    ray_documents = [d for d in assembled(folder) if d["apiVersion"] == "ray.io/v1"]
    assert ray_documents
    assert [problem for document in ray_documents for problem in problems_of(document)] == []


@every_overlay
def test_other_documents_are_valid_by_the_schemas_of_kubernetes(folder: Path):
    validate = pytest.importorskip("kubernetes_validate")
    documents = [d for d in assembled(folder) if d["apiVersion"] in CORE]
    assert documents
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found():
    validate = pytest.importorskip("kubernetes_validate")
    (policy,) = (d for d in assembled(KUBERAY / "overlays/gpu") if d["kind"] == "NetworkPolicy")
    wrong = copy.deepcopy(policy)
    wrong["spec"]["egres"] = wrong["spec"].pop("egress")
    with pytest.raises(validate.ValidationError, match="egres"):
        validate.validate(wrong, validate.latest_version(), strict=True)


def job_in(folder: Path) -> dict:
    (job,) = (d for d in assembled(folder) if d["kind"] == "RayJob")
    return job


def test_every_stage_has_a_job_of_its_own():
    assert {folder.name for folder in STAGES.iterdir()} == set(ORDER)


@pytest.mark.parametrize("stage", ORDER)
def test_the_job_of_a_stage_is_the_whole_run_s_but_for_its_name_and_its_command(stage: str):
    command, load = ORDER[stage]
    whole, job = job_in(KUBERAY / "overlays/gpu"), job_in(STAGES / stage)
    assert job["metadata"].pop("name") == f"{whole['metadata'].pop('name')}-{stage}"
    entrypoint, whole_entrypoint = job["spec"].pop("entrypoint"), whole["spec"].pop("entrypoint")
    assert entrypoint == whole_entrypoint.replace(" run ", f" {command} ", 1)
    assert job == whole
    words = shlex.split(entrypoint)[3 + len(command.split()) :]
    recipe, *overrides = words
    loaded = load(ROOT / Path(recipe).relative_to("/app"), overrides)
    assert loaded.run_dir == "s3://your-bucket/runs/moaa-llama"


def test_the_head_of_a_service_outlives_itself_and_its_password_stays_in_a_secret():
    (service,) = (d for d in assembled(KUBERAY / "overlays/serve-ft") if d["kind"] == "RayService")
    options = service["spec"]["rayClusterConfig"].pop("gcsFaultToleranceOptions")
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "moaa-redis", "key": "password"}}}
    assert "@" not in options["redisAddress"]
    (without,) = (d for d in assembled(KUBERAY / "overlays/serve") if d["kind"] == "RayService")
    assert service == without
