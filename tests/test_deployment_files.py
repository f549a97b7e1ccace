"""Manifests for Kubernetes and units for systemd."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.config import Settings
from gateway_console.settings import ConsoleSettings, load_console_settings
from tests.stack import ServeSharedGateway
from tools_server.config import Settings as ToolSettings

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
SYSTEMD = ROOT / "deploy" / "systemd"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = ("1.30", kubernetes_validate.latest_version())
CONSOLE_UNIT = "agent-gateway-console.service"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
SAMPLES = {
    "PASSWORD": "s3cret",
    "API_KEY": "k" * 32,
    "GATEWAY_ENCRYPTION_KEY": "e" * 32,
    "TOOLS_SERVER_STATE_KEY": "t" * 32,
    "GROQ_API_KEY": "gsk_test",
}
Manifest = dict[str, Any]


def read_env(text: str) -> dict[str, str]:
    """Read `NAME=value` lines.

    Empty values get a sample, as a person would fill them in.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    return {name: (value or SAMPLES[name]).replace("PASSWORD", "s3cret") for name, value in values.items()}


def read_kustomization() -> Manifest:
    return yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())


def read_generated(kind: str) -> dict[str, dict[str, str]]:
    """Return the values of the generated ConfigMaps or Secrets by name."""
    found: dict[str, dict[str, str]] = {}
    for generator in read_kustomization()[f"{kind}Generator"]:
        texts = [*generator.get("literals", [])]
        texts += [(KUBERNETES / f"{file}.example").read_text() for file in generator.get("envs", [])]
        found[generator["name"]] = read_env("\n".join(texts))
    return found


def render() -> list[Manifest]:
    """Return the resources, and the generated ones."""
    kustomization = read_kustomization()
    documents = [
        document
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]
    for kind, field in (("configMap", "data"), ("secret", "stringData")):
        api_kind = kind[0].upper() + kind[1:]
        for name, values in read_generated(kind).items():
            documents.append({"apiVersion": "v1", "kind": api_kind, "metadata": {"name": name}, field: values})
    return documents


def find(kind: str, name: str | None = None) -> list[Manifest]:
    return [item for item in render() if item["kind"] == kind and name in (None, item["metadata"]["name"])]


def list_pods() -> Iterator[tuple[str, Manifest]]:
    for item in [*find("Deployment"), *find("Job")]:
        yield item["metadata"]["name"], item["spec"]["template"]


def collect_environment(name: str, container: Manifest) -> dict[str, str]:
    """Collect the variables of a container, in the order of their precedence."""
    sources = {"configMapRef": read_generated("configMap"), "secretRef": read_generated("secret")}
    values: dict[str, str] = {}
    for entry in container.get("envFrom", []):
        ((kind, reference),) = entry.items()
        values |= sources[kind][reference["name"]]
    return values | {variable["name"]: variable["value"] for variable in container.get("env", [])}


def find_problem(manifest: Manifest, version: str) -> str | None:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return error.message
    return None


@pytest.mark.parametrize("version", [pytest.param(VERSIONS[0], marks=pytest.mark.faults), VERSIONS[1]])
def test_manifests_are_valid(version: str) -> None:
    problems = {f"{item['kind']} {item['metadata']['name']}": find_problem(item, version) for item in render()}
    assert len(problems) == len(render())
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_a_misspelt_field_of_a_manifest_is_found() -> None:
    (deployment,) = find("Deployment", "gateway")
    broken = copy.deepcopy(deployment)
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert find_problem(broken, VERSIONS[1]) is not None


def test_kubernetes_has_every_part_of_the_deployment() -> None:
    kinds = {(item["kind"], item["metadata"]["name"]) for item in render()}
    for server in ("gateway", "tools"):
        parts = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap", "Secret")
        assert {(kind, server) for kind in parts} <= kinds
    assert {(kind, "console") for kind in ("Deployment", "Service", "NetworkPolicy", "ConfigMap")} <= kinds
    assert {("Job", "migrations"), ("HorizontalPodAutoscaler", "gateway"), ("NetworkPolicy", "default")} <= kinds


def test_selectors_and_targets_exist() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in list_pods()]

    def is_labelled(selector: dict[str, str]) -> bool:
        return any(selector.items() <= pod.items() for pod in labels)

    assert all(is_labelled(item["spec"]["selector"]) for item in find("Service"))
    assert all(is_labelled(item["spec"]["selector"]["matchLabels"]) for item in find("PodDisruptionBudget"))
    for policy in find("NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        peers = [peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]]
        selectors = [policy["spec"]["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
        assert all(is_labelled(selector.get("matchLabels", {})) for selector in selectors)
    (autoscaler,) = find("HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    (deployment,) = find(target["kind"], target["name"])
    assert "replicas" not in deployment["spec"]  # else each `apply` would undo the autoscaler's decision


@pytest.mark.parametrize("server", ["gateway", "tools", "migrations"])
def test_pods_are_restricted(server: str) -> None:
    """The rules of Kubernetes' Pod Security Standard "restricted"."""
    pod = dict(list_pods())[server]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    writable = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert writable == {"/tmp", collect_environment(server, container)["GATEWAY_DATA_DIR"]}


def list_setting_names(settings: type[Settings | ToolSettings]) -> set[str]:
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        names |= {name.upper(), *(str(choice) for choice in getattr(alias, "choices", ()))}
    return names


def check_settings(
    settings: type[Settings | ToolSettings], values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Settings | ToolSettings:
    """Load settings from variables, all of which must be known."""
    assert set(values) <= list_setting_names(settings), set(values) - list_setting_names(settings)
    monkeypatch.setattr("os.environ", dict(values))
    return settings(_env_file=None)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("server", ["gateway", "tools", "migrations"])
def test_settings_of_the_pods_exist_and_are_valid(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = dict(list_pods())[server]["spec"]["containers"]
    kind = ToolSettings if server == "tools" else Settings
    settings = check_settings(kind, collect_environment(server, container), monkeypatch)
    assert settings.database_url is not None
    ports = {port["containerPort"] for port in container.get("ports", [])}
    if isinstance(settings, ToolSettings):
        assert ports == {settings.tools_server_port}
    elif server == "gateway":
        assert ports == {settings.gateway_port}
        assert settings.gateway_encryption_key is not None
        assert settings.gateway_allow_anonymous is False
        grace = dict(list_pods())[server]["spec"]["terminationGracePeriodSeconds"]
        assert grace > settings.shutdown_grace_seconds + 5


def test_pods_run_commands_that_exist() -> None:
    commands = {name: pod["spec"]["containers"][0]["args"] for name, pod in list_pods()}
    assert {args[0] for args in commands.values()} <= set(PROJECT["scripts"])
    assert commands["migrations"] == ["agent-gateway", "db", "upgrade"]
    (image,) = read_kustomization()["images"]
    assert image["newTag"] == PROJECT["version"]
    assert {pod["spec"]["containers"][0]["image"] for _, pod in list_pods()} == {image["name"]}


async def test_probes_get_an_answer_with_the_trusted_hosts_of_the_pods(
    serve_shared_gateway: ServeSharedGateway,
) -> None:
    trusted = read_generated("configMap")["gateway"]["TRUSTED_HOSTS"]
    gateway = await serve_shared_gateway(trusted_hosts=tuple(trusted.split(",")))
    (container,) = dict(list_pods())["gateway"]["spec"]["containers"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        assert probe["port"] in {port["name"] for port in container["ports"]}
        headers = {header["name"]: header["value"] for header in probe["httpHeaders"]}
        assert (await gateway.get(probe["path"], headers=headers)).status == 200
    jwks = read_generated("configMap")["tools"]["TOOLS_SERVER_GATEWAY_JWKS_URL"].removeprefix("http://")
    host, slash, path = jwks.partition("/")
    assert (await gateway.get(slash + path, headers={"Host": host})).status == 200
    assert (await gateway.get("/api/v1/models", headers={"Host": "elsewhere.example"})).status >= 400


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_valid(unit: str, tmp_path: Path) -> None:
    """Commands and user of the machine replace those of the installation."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd is not installed")
    for path in SYSTEMD.glob("*.service"):
        text = re.sub(r"/opt/agent-gateway/\.venv/bin/[a-z-]+", sys.executable, path.read_text())
        text = re.sub(r"^(User|Group|WorkingDirectory)=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    command = [analyze, "verify", "--man=no", tmp_path / unit]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != CONSOLE_UNIT])
def test_settings_of_the_units_exist_and_are_valid(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (SYSTEMD / unit).read_text()
    (command,) = re.findall(r"^ExecStart=/opt/agent-gateway/\.venv/bin/(.*)$", text, re.MULTILINE)
    assert command.split()[0] in PROJECT["scripts"]
    values: dict[str, str] = {}
    for name in re.findall(r"^EnvironmentFile=/etc/agent-gateway/(.*)$", text, re.MULTILINE):
        values |= read_env((SYSTEMD / f"{name}.example").read_text())
    for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
        values |= read_env(line.replace(" ", "\n"))
    kind = ToolSettings if command.startswith("tools-server") else Settings
    settings = check_settings(kind, values, monkeypatch)
    assert settings.database_url is not None
    directory = re.search(r"^StateDirectory=(.*)$", text, re.MULTILINE)
    assert directory is not None
    assert values["GATEWAY_DATA_DIR"] == f"/var/lib/{directory[1]}"


def test_console_has_its_settings_and_neither_secrets_nor_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = dict(list_pods())["console"]
    (container,) = pod["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "console"}}]
    assert "app.kubernetes.io/part-of" not in pod["metadata"]["labels"]  # the policy `database` is not for it
    assert container["args"] == ["agent-gateway", "console"]
    assert (pod["spec"]["securityContext"]["runAsNonRoot"], container["securityContext"]) == (
        True,
        {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    )
    unit = (SYSTEMD / CONSOLE_UNIT).read_text()
    assert re.findall(r"^EnvironmentFile=(.*)$", unit, re.MULTILINE) == ["/etc/agent-gateway/console.env"]
    assert "ExecStart=/opt/agent-gateway/.venv/bin/agent-gateway console\n" in unit
    known = {name.upper() for name in ConsoleSettings.model_fields}
    for values in (
        collect_environment("console", container),
        read_env((SYSTEMD / "console.env.example").read_text()),
    ):
        assert set(values) <= known
        monkeypatch.setattr("os.environ", values)
        assert load_console_settings().console_port == 8002
    assert {port["containerPort"] for port in container["ports"]} == {8002}
    settings = load_console_settings()
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        (header,) = container[name]["httpGet"]["httpHeaders"]
        assert header["value"] in settings.hosts
