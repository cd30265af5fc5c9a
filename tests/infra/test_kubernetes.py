"""Kubernetes manifests and job templates, checked against Kubernetes' schemas and its strictest security standard."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

from lewis_core.listener.__main__ import parse_arguments
from tests.infra.manifests import INFRA, compose_file, job_template, kubernetes_resources, pod_specs

RESOURCES = kubernetes_resources()
VERSIONS = ["1.32", "1.37"]
GPU = "nvidia.com/gpu"


def rendered_job(**changes: object) -> dict[str, Any]:
    """The Job that a worker makes of a run, with the template's defaults."""
    template = job_template("kubernetes")
    defaults = {name: v["default"] for name, v in template["variables"]["properties"].items() if "default" in v}
    named = {"name": "run", "labels": {"a": "b"}, "command": ["prefect", "flow-run", "execute"]}
    env = {"env": [{"name": key, "value": value} for key, value in defaults["env"].items()]}
    job: dict[str, Any] = apply_values(
        template["job_configuration"]["job_manifest"], {**defaults, **named, **env, **changes}
    )
    job["metadata"]["name"] = f"{job['metadata'].pop('generateName')}x"
    return job


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*RESOURCES, "a run's Job"])
def test_manifests_follow_the_schema(name: str, version: str) -> None:
    resource = RESOURCES[name] if name in RESOURCES else rendered_job()
    kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        (
            "Deployment/lewis-listener",
            ["spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"],
            "http",
        ),
        ("Deployment/lewis-worker", ["spec", "replica"], 2),
        ("HorizontalPodAutoscaler/lewis-listener", ["spec", "maxReplicas"], "many"),
    ],
)
def test_mistakes_are_seen(name: str, path: list[str | int], value: object) -> None:
    broken = copy.deepcopy(RESOURCES[name])
    place: Any = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", [*dict(pod_specs(RESOURCES)), "a run's Job"])
def test_pods_meet_the_restricted_standard(name: str) -> None:
    pod = dict(pod_specs({**RESOURCES, "a run's Job": rendered_job()}))[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_only_the_worker_may_talk_to_the_cluster_and_only_to_its_namespace() -> None:
    for name, pod in pod_specs({**RESOURCES, "a run's Job": rendered_job()}):
        assert (pod.get("automountServiceAccountToken") is False) != (name == "Deployment/lewis-worker"), name
    assert not [name for name in RESOURCES if name.startswith("Cluster")]
    worker = RESOURCES["Deployment/lewis-worker"]["spec"]["template"]["spec"]["containers"][0]
    env = {one["name"]: one["value"] for one in worker["env"]}
    assert env["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == "lewis"


def test_the_listener_has_a_gpu_a_service_and_an_autoscaler_on_its_queue() -> None:
    container = RESOURCES["Deployment/lewis-listener"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"][GPU] == container["resources"]["requests"][GPU] == "1"
    arguments = parse_arguments(container["args"])
    assert arguments.host == "0.0.0.0"
    assert any(arguments.token_file.is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"])
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    labels = RESOURCES["Deployment/lewis-listener"]["spec"]["template"]["metadata"]["labels"]
    service = RESOURCES["Service/lewis-listener"]["spec"]
    assert service["selector"].items() <= labels.items()
    scaler = RESOURCES["HorizontalPodAutoscaler/lewis-listener"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "lewis-listener"
    assert "replicas" not in RESOURCES["Deployment/lewis-listener"]["spec"], "the autoscaler decides"
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    rules = yaml.safe_load((INFRA / "kubernetes/prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"][
        "custom"
    ]
    assert metric in [rule["name"]["as"] for rule in rules]


def test_a_run_gets_the_gpus_that_its_job_variables_ask_for() -> None:
    [container] = rendered_job(gpus=8, memory_limit="900Gi")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "900Gi", GPU: 8}
    assert container["args"] == ["prefect", "flow-run", "execute"]


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_job_templates_use_variables_that_they_declare(kind: str) -> None:
    template = job_template(kind)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    env = template["variables"]["properties"]["env"]["default"]
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_containers_of_runs_see_what_the_stack_sees() -> None:
    """Runs in containers of their own share volumes and network with compose, whose names begin with the project's."""
    compose = compose_file("compose.yaml")
    defaults = {name: v.get("default") for name, v in job_template("docker")["variables"]["properties"].items()}
    assert defaults["image"] == compose["services"]["worker"]["image"]
    assert defaults["networks"] == [f"{compose['name']}_default"]
    worker = [volume.split(":") for volume in compose["services"]["worker"]["volumes"]]
    assert defaults["volumes"] == [f"{compose['name']}_{name}:{path}" for name, path in worker]
    client = compose["services"]["worker"]["environment"]
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_HOME", "HOME"):
        assert defaults["env"][name] == client[name]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_it(tmp_path: Path) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", INFRA / "kubernetes"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    resources = list(yaml.safe_load_all(built.stdout))
    assert {f"{one['kind']}/{one['metadata']['name']}" for one in resources} >= set(RESOURCES)
    for resource in resources:
        kubernetes_validate.validate(resource, VERSIONS[0], strict=True)
    images = {
        c["image"]
        for r in resources
        if "template" in r.get("spec", {})
        for c in r["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example.org/lewis:0.1.0-cpu", "registry.example.org/lewis:0.1.0-cuda"}
