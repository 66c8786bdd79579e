"""The Dockerfile, the workflows, the Compose file and the alerts, as their own programs see them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.chart import TOOLS
from harness.paths import DOCS, ROOT
from scripts.images import DOCKERFILE

pytestmark = pytest.mark.deploy

COMPOSE = ROOT / "deploy" / "compose"
MONITORING = ROOT / "deploy" / "monitoring"
PROFILES = ("rabbitmq,cpu,http", "valkey,cpu,tls", "rabbitmq,gpu,http,monitoring")
SETUP = (
    ((), PROFILES[0]),
    (("--broker", "valkey", "--device", "gpu", "--monitoring"), "valkey,gpu,http,monitoring"),
)


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def compose(*arguments: str, folder: Path, profiles: str) -> "subprocess.CompletedProcess[str]":
    ours = TOOLS / "docker-compose"
    found = str(ours) if ours.exists() else shutil.which("docker-compose")
    program = (found,) if found else ("docker", "compose")
    file = folder / "compose.yaml"
    return run(*program, "--file", str(file), *arguments, COMPOSE_PROFILES=profiles)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Compose folder that was set up."""
    copied = tmp_path_factory.mktemp("deploy") / "compose"
    shutil.copytree(COMPOSE, copied, ignore=shutil.ignore_patterns("secrets", ".env", "models"))
    assert run(copied / "setup").returncode == 0
    return copied


def test_dockerfile_passes_the_linter() -> None:
    done = run(TOOLS / "hadolint", "--failure-threshold", "style", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_workflows_fit_their_schema(tmp_path: Path) -> None:
    check = (TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    workflows = sorted((ROOT / ".github" / "workflows").iterdir())
    done = run(*check, *workflows)
    assert (len(workflows), done.returncode) == (2, 0), done.stdout
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(workflows[0].read_text(encoding="utf-8").replace("runs-on:", "run-on:", 1))
    assert run(*check, wrong).returncode == 1


@pytest.mark.parametrize("profiles", PROFILES)
def test_compose_file_is_valid_and_every_container_is_locked_up(folder: Path, profiles: str) -> None:
    done = compose("config", "--format", "json", folder=folder, profiles=profiles)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert {"gateway", "database", "store"} <= services.keys()
    assert len(services) >= 10
    pages = "".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("settings", "models"))
    known = set(re.findall(r"^\| `(SMALTI_[A-Z_]+)`", pages, re.MULTILINE))
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"] == "unless-stopped", name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert name in ("prometheus", "grafana") or service["healthcheck"], name
        settings = service.get("environment") or {}
        assert {each for each in settings if each.startswith("SMALTI_")} <= known, name
        # Secrets are files; none is in the environment.
        assert not [
            each for each, value in settings.items() if re.search(r"://[^/@]+@|[A-Za-z0-9]{20}", value or "")
        ]


@pytest.mark.parametrize(("arguments", "profiles"), SETUP)
def test_setup_keeps_secrets_and_follows_its_options(
    folder: Path, arguments: tuple[str, ...], profiles: str
) -> None:
    before = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    assert run(folder / "setup", *arguments).returncode == 0
    after = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    assert f"COMPOSE_PROFILES={profiles}" in (folder / ".env").read_text().splitlines()
    url = after.pop("SMALTI_BROKER_URL")
    assert url.startswith("redis://" if "valkey" in arguments else "amqp://")
    assert before["broker-password"] in url
    assert {**before, "SMALTI_BROKER_URL": ""} == {**after, "SMALTI_BROKER_URL": ""}
    assert (folder / "secrets").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--broker", "kafka"), "setup: --broker must be rabbitmq or valkey, not kafka"),
        (
            ("--certificate", "/none.pem", "--key", "/none.key"),
            "setup: --certificate: /none.pem cannot be read",
        ),
        (("--key", "/etc/hostname"), "setup: --key needs --certificate"),
        (("--devices", "cpu"), "setup: unknown option --devices"),
        (("--device",), "setup: --device needs a value"),
    ],
)
def test_setup_refuses_wrong_options_with_one_line(
    folder: Path, arguments: tuple[str, ...], line: str
) -> None:
    done = run(folder / "setup", *arguments)
    assert (done.returncode, done.stderr) == (2, f"{line}\n")


def test_alerts_fire_and_do_not_fire_as_their_tests_say() -> None:
    for arguments in (("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")):
        done = subprocess.run(
            ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
