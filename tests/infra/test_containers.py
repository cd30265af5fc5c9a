"""Dockerfiles and compose files: checked by their tools, and for what may not be in them."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from lewis_core.listener.__main__ import parse_arguments
from tests.infra.manifests import INFRA, PASSWORDS, ROOT, compose_file, interpolate

HADOLINT = Path(sys.executable).parent / "hadolint"
DOCKERFILES = ["infra/docker/Dockerfile", "infra/docker/Dockerfile.cuda"]
COMPOSE = compose_file("compose.yaml")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_are_sound(name: str, tmp_path: Path) -> None:
    checked = hadolint(ROOT / name)
    assert checked.returncode == 0, checked.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(
        (ROOT / name).read_text(encoding="utf-8") + "RUN cd /tmp && pip install requests\n", encoding="utf-8"
    )
    assert "DL3003" in hadolint(worse).stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_and_do_not_run_as_root(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases), bases
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    setup = (INFRA / "setup.sh").read_text(encoding="utf-8")
    for package in ("torch", "torchvision"):
        pinned = re.search(rf'^{package.upper()}="(.+)"$', setup, flags=re.MULTILINE)
        assert pinned is not None
        assert f"ARG {package.upper()}={pinned.group(1)}" in lines


def test_nothing_secret_or_needless_goes_into_an_image() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[1] == "*"
    allowed = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    assert allowed == {"README.md", "pyproject.toml", "lewis_core", "tasks", "flows", "deployments", "infra"}
    assert {"infra/compose/.env", "infra/compose/*.env"} <= set(rules)
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/compose/.env", "infra/compose/secrets.env"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert len(ignored.stdout.splitlines()) == 2


@pytest.mark.parametrize("name", ["compose.yaml", "gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    found = compose_file(name)
    parsed = compose_spec.PyCompose.from_json(json.dumps(found))
    assert set(parsed.service_names()) == set(found["services"])
    for key, value in (("comand", ["x"]), ("ports", ["a:b"]), ("restart", "sometimes"), ("read_only", "maybe")):
        broken = copy.deepcopy(found)
        broken["services"]["worker"][key] = value
        with pytest.raises(ValueError, match=r"\w"):
            compose_spec.PyCompose.from_json(json.dumps(broken))


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD"])
def test_a_missing_password_stops_compose(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose_file("compose.yaml", {**PASSWORDS, name: ""})


def test_the_example_names_every_variable() -> None:
    text = "".join((INFRA / "compose" / name).read_text(encoding="utf-8") for name in ("compose.yaml", "gpu.yaml"))
    secrets = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    used = set(re.findall(r"\$\{(\w+)", text)) | secrets
    example = (INFRA / "compose/example.env").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE)) == used
    assert not re.search(r"^(\w*(?:PASSWORD|TOKEN))=.", example, flags=re.MULTILINE), "no defaults for secrets"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_are_locked_down(name: str) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    assert re.search(r":v?\d+\.\d+", service["image"]), "pin the image"
    assert not service["user"].startswith(("0", "root"))
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{port} can be reached from other machines"
    networks = service["networks"]
    assert ("data" in networks) == (name in {"postgres", "prefect", "mlflow"})


def test_services_wait_for_each_other_and_say_when_they_are_well() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        waits = service.get("depends_on", {})
        for other, condition in waits.items() if isinstance(waits, dict) else ():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
    assert services["worker"]["depends_on"]["register"] == {"condition": "service_completed_successfully"}
    script = services["register"]["command"][-1]
    assert "infra/work_pools/process.json" in script
    assert "deployments/prefect.yaml --all" in script
    assert "python -m deployments.automations" in script


def test_the_listener_takes_its_command_line() -> None:
    command = COMPOSE["services"]["listener"]["command"]
    assert command[:3] == ["python", "-m", "lewis_core.listener"]
    arguments = parse_arguments(command[3:])
    assert arguments.token_file == Path("/run/secrets/listener_token")
    assert set(COMPOSE["services"]["listener"]["secrets"]) == {"listener_token"}


def test_prometheus_asks_services_that_exist() -> None:
    content = yaml.safe_load(interpolate((INFRA / "compose/prometheus.yaml").read_text(encoding="utf-8"), {}))
    targets = {t for job in content["scrape_configs"] for static in job["static_configs"] for t in static["targets"]}
    for target in targets - {"127.0.0.1:9090"}:
        host, _, port = target.partition(":")
        assert host in COMPOSE["services"], target
        if host != "worker":  # where runs listen is in their settings
            published = [mapping.rpartition(":")[2] for mapping in COMPOSE["services"][host]["ports"]]
            assert port in published, target
