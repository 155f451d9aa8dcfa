"""What `kubectl apply -k` is given keeps its promises after components have changed it."""

import copy
import shlex
from pathlib import Path

import pytest

from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_preference, load_recipe, load_training
from moaa_ray.planning.cluster import parse_cluster
from tests.cluster.crds import problems_of
from tests.cluster.documents import KUBERAY, RENDERED, ROOT, assembled, pods_of

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


def test_every_model_of_the_run_with_nodes_per_model_finds_a_group_of_its_own_label_and_the_run_fits_on_it():
    """A group's labels are those that its nodes have in Ray; its nodeSelector is what Kubernetes puts them on."""
    job = job_in(KUBERAY / "overlays/gpu-per-model")
    recipe, *overrides = shlex.split(job["spec"]["entrypoint"])[4:]
    loaded = load_recipe(ROOT / Path(recipe).relative_to("/app"), overrides)
    groups = {pod.group["groupName"]: pod for pod in pods_of(job) if not pod.is_head}
    assert {name: pod.group["labels"] for name, pod in groups.items()} == {
        name: {"capacity": "on-demand", "pool": name} for name in groups
    }
    assert {model.node_labels["pool"] for model in loaded.recipe.models.values()} == set(groups)
    kinds = {name: pod.spec["nodeSelector"]["karpenter.k8s.aws/instance-gpu-name"] for name, pod in groups.items()}
    assert kinds == {"small": "l40s", "large": "h100"}
    shape = " + ".join(
        f"gpus={pod.container['resources']['limits']['nvidia.com/gpu']},gpu={kinds[name]},nodes=1,"
        f"cpus={pod.container['resources']['limits']['cpu']},labels=pool:{name}"
        for name, pod in groups.items()
    )
    plan = plan_generate(loaded.recipe, parse_cluster(shape), 10_000)
    assert len(plan.phases) == 1
    assert plan.models.keys() == loaded.recipe.models.keys()


def test_a_run_that_grows_differs_by_the_autoscaler_alone_and_only_the_autoscaler_holds_a_token():
    """The operator puts the autoscaler's container beside the head's; autoscalerOptions say what is mounted in it."""
    jobs = [job_in(KUBERAY / "overlays" / name) for name in ("gpu-per-model", "gpu-grows")]
    fixed, grows = (job["spec"]["rayClusterSpec"] for job in jobs)
    assert grows.pop("enableInTreeAutoscaling") is True
    options = grows.pop("autoscalerOptions")
    assert options["version"] == "v2"
    assert options["idleTimeoutSeconds"] >= 600
    assert options["resources"]["requests"] == options["resources"]["limits"]
    head = grows["headGroupSpec"]["template"]["spec"]
    container = fixed["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert options["securityContext"] == container["securityContext"]
    token = head["volumes"].pop()
    mounts = {mount["name"]: mount["mountPath"] for mount in options["volumeMounts"]}
    assert mounts[token["name"]] == "/var/run/secrets/kubernetes.io/serviceaccount"
    assert {next(iter(source)) for source in token["projected"]["sources"]} >= {"serviceAccountToken", "configMap"}
    assert token["name"] not in {mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert head["automountServiceAccountToken"] is False
    assert head.pop("serviceAccountName") == "moaa-autoscaler"
    fixed["headGroupSpec"]["template"]["spec"].pop("serviceAccountName")
    sizes = [pod.container["resources"]["limits"] for pod in pods_of(jobs[0]) if not pod.is_head]
    told_apart = {(size["cpu"], size["memory"], size["nvidia.com/gpu"]) for size in sizes}
    assert len(told_apart) == len(sizes), "Ray Data takes groups of one size for one kind, whatever their labels"
    for group in grows["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] == group["replicas"] < group["maxReplicas"]
        group["maxReplicas"] = group["minReplicas"]
    assert grows == fixed


def test_the_autoscaler_reaches_the_kubernetes_api_and_nobody_else_does_more_than_before():
    before, after = (assembled(KUBERAY / "overlays" / name) for name in ("gpu-per-model", "gpu-grows"))
    added = [d for d in after if d not in before and d["kind"] != "RayJob"]
    assert [(d["kind"], d["metadata"]["name"]) for d in added] == [
        ("ServiceAccount", "moaa-autoscaler"), ("NetworkPolicy", "moaa-autoscaler"),
    ]  # fmt: skip
    policy = added[1]["spec"]
    assert policy["podSelector"] == {"matchLabels": {"moaa-ray/role": "run-head"}}
    assert policy["policyTypes"] == ["Egress"]
    assert [rule["ports"] for rule in policy["egress"]] == [[{"protocol": "TCP", "port": 6443}]]
