"""The chart: both Helms render every preset, and what they render is valid, locked up, and says what Smalti reads."""

import os
import re
from pathlib import Path

import pytest

from harness import mtls
from harness.chart import (
    CHART,
    HELMS,
    PRESETS,
    Object,
    arguments,
    helm,
    objects,
    pods,
    rendered,
)
from harness.paths import DOCS
from smalti.messages import MessageSettings
from smalti.queue.settings import BrokerSettings
from smalti.rpc.settings import RpcSettings
from smalti.service.settings import ServiceSettings
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.web.settings import WebSettings
from smalti.settings import Settings, read_settings
from smalti.storage import StoreSettings, open_store

pytestmark = pytest.mark.deploy

SETTINGS = (
    *(
        BrokerSettings,
        GatewaySettings,
        MessageSettings,
        RpcSettings,
        ServiceSettings,
        Settings,
        StoreSettings,
    ),
    WebSettings,
)
SECRETS = {
    "SMALTI_BROKER_URL": "amqps://smalti:secret@rabbitmq.example:5671//",
    "SMALTI_STORE_ACCESS_KEY": "access",
    "SMALTI_STORE_SECRET_KEY": "secret",
    "SMALTI_GATEWAY_DATABASE": "postgresql://smalti:secret@database.example/smalti",
    "SMALTI_WEB_SIGNING_KEY": "s" * 40,
}


def of_smalti(found: list[Object]) -> list[tuple[str, Object]]:
    """Returns the pods of Smalti's own images."""
    return [
        (name, spec)
        for name, spec in pods(found)
        if any(each["image"].startswith("smalti/") for each in spec["containers"])
    ]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("program", HELMS)
def test_preset_passes_the_linter(program: str, preset: str) -> None:
    done = helm(program, "lint", "--strict", str(CHART), *arguments(preset))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_both_helms_render_the_same(preset: str) -> None:
    def without_passwords(text: str) -> list[Object]:
        return [each for each in objects(text) if each["kind"] != "Secret"]

    first, second = (without_passwords(rendered(preset, "1.33", program)) for program in HELMS)
    assert first == second


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_that_is_rendered_is_one(preset: str) -> None:
    pages = "".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("settings", "models"))
    known = set(re.findall(r"^\| `(SMALTI_[A-Z_]+)`", pages, re.MULTILINE))
    used = set(re.findall(r"\bSMALTI_[A-Z_]+\b", rendered(preset)))
    assert used
    assert used <= known


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_of_every_pod_are_valid(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for secret, value in SECRETS.items():
        (tmp_path / secret).write_text(value)
    for name, spec in of_smalti(objects(rendered(preset))):
        for variable in [each for each in os.environ if each.startswith("SMALTI_")]:
            monkeypatch.delenv(variable)
        (container,) = spec["containers"]
        for each in container.get("env", []):
            monkeypatch.setenv(each["name"], each.get("value", "10.0.0.1"))
        monkeypatch.setenv("SMALTI_SECRETS", str(tmp_path))
        monkeypatch.setenv("SMALTI_RPC_HOST", "0.0.0.0")  # As the images have it.
        for kind in SETTINGS:
            assert read_settings(kind), name
        open_store()


def test_the_operator_chooses_the_version_that_messages_are_written_in() -> None:
    given = ("--set-string", "env.SMALTI_MESSAGES_WRITE=2")
    done = helm("helm4", "template", "x", str(CHART), *arguments("cpu", ()), *given)
    assert done.returncode == 0, done.stderr
    deployments = [each for each in objects(done.stdout) if each["kind"] == "Deployment"]
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            values = [each["value"] for each in container["env"] if each["name"] == "SMALTI_MESSAGES_WRITE"]
            assert values == ["2"]


def test_services_have_certificates_with_the_names_by_which_they_are_called() -> None:
    """The settings and names are those with which tests/services/test_mtls.py runs the services."""
    found = objects(rendered("cpu"))
    secrets: dict[str, str] = {}
    for name, spec in of_smalti(found):
        kind = next((each for each in ("gateway", "web") if name == f"Deployment smalti-{each}"), "stages")
        if not name.startswith("Deployment"):
            continue
        (container,) = spec["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        names = re.compile("SMALTI_RPC_(TLS|SYSTEM)")
        shown = {each: value for each, value in given.items() if names.match(each)}
        assert shown == mtls.variables(kind, Path("/run/smalti/tls")), name
        (volume,) = [each for each in spec["volumes"] if each["name"] == "tls"]
        secrets[kind] = volume["secret"]["secretName"]
    certificates = {
        each["spec"]["secretName"]: each["spec"]["dnsNames"]
        for each in found
        if each["kind"] == "Certificate"
    }
    assert certificates == {secrets[kind]: list(names) for kind, names in mtls.NAMES.items()}


def test_workers_reach_only_what_they_need() -> None:
    found = {
        each["metadata"]["name"]: each["spec"]
        for each in objects(rendered("minimal"))
        if each["kind"] == "NetworkPolicy"
    }
    nothing = found["smalti-nothing"]
    assert nothing["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in nothing
    assert "egress" not in nothing
    reached = {
        (port["port"], place["podSelector"]["matchLabels"]["app.kubernetes.io/component"])
        for rule in found["smalti-stages"]["egress"]
        for port in rule["ports"]
        for place in rule["to"]
    }
    assert reached == {(6379, "broker"), (8333, "store")}
    assert [rule["ports"] for rule in found["smalti-web"]["egress"]] == [[{"port": 50050}]]


@pytest.mark.parametrize("preset", ["nvidia", "tpu"])
def test_accelerators_are_asked_for_and_kept_to_their_nodes(preset: str) -> None:
    resource, key = {
        "nvidia": ("nvidia.com/gpu", "nvidia.com/gpu"),
        "tpu": ("google.com/tpu", "google.com/tpu"),
    }[preset]
    specs = dict(pods(objects(rendered(preset))))
    generator = specs["Deployment smalti-generator-pictograms"]
    (container,) = generator["containers"]
    assert container["resources"]["limits"][resource] == container["resources"]["requests"][resource] == 1
    assert container["image"].endswith("-cuda12" if preset == "nvidia" else "-tpu")
    assert {"key": key, "operator": "Exists", "effect": "NoSchedule"} in generator["tolerations"]
    assert generator["nodeSelector"]
    encoder = specs["Deployment smalti-encoder-pictograms"]
    assert "tolerations" not in encoder
    if preset == "nvidia":
        (decoder,) = specs["Deployment smalti-decoder-pictograms"]["containers"]
        assert decoder["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1


def test_weights_are_verified_before_the_service_starts() -> None:
    settings: tuple[str, ...] = (
        "models[0].name=mega",
        "models[0].source.hub.repository=dalle-mini/dalle-mega",
        "models[0].source.hub.revision=v1",
    )
    specs = dict(pods(objects(rendered("minimal", settings=settings))))
    for name in ("Deployment smalti-generator-mega", "Deployment smalti-gateway"):
        pull, verify = specs[name]["initContainers"]
        assert pull["command"] == [
            *("smalti", "pull", "dalle-mini/dalle-mega", "--name", "mega", "--revision", "v1")
        ]
        # The images of some services have no JAX.
        assert pull["image"].startswith("smalti/encoder:")
        assert verify["command"] == ["smalti", "verify", "mega", "--files"]
    settings = ("models[0].name=pictograms", "models[0].source.image.reference=r.example/m@sha256:1")
    specs = dict(pods(objects(rendered("minimal", settings=settings))))
    generator = specs["Deployment smalti-generator-pictograms"]
    assert [each["name"] for each in generator["initContainers"]] == ["verify"]
    (volume,) = [each for each in generator["volumes"] if each["name"] == "models"]
    assert volume["image"]["reference"] == "r.example/m@sha256:1"


def test_weights_from_a_store_are_pulled_by_their_hash() -> None:
    sha256, revision = "ab" * 32, f"sha256:{'cd' * 32}"
    settings: tuple[str, ...] = (
        "models[0].name=mega",
        "models[0].source.s3.address=s3://weights/all",
        f"models[0].source.s3.sha256={sha256}",
        f"models[0].revision={revision}",
    )
    other = ("url=s3+https://other.example:9000/weights", "existingSecret=weights", "claim=weights")
    more = tuple(f"models[0].source.s3.{each}" for each in other)
    for given, url, secret in (
        (settings, "s3+http://smalti-store:8333/smalti", "smalti-store"),
        (settings + more, "s3+https://other.example:9000/weights", "weights"),
    ):
        found = objects(rendered("minimal", settings=given))
        for name in ("Deployment smalti-ranker-mega", "Deployment smalti-gateway"):
            spec = dict(pods(found))[name]
            pull, verify = spec["initContainers"]
            assert pull["command"] == [
                *("smalti", "pull", "s3://weights/all", "--name", "mega", "--sha256", sha256)
            ]
            assert {"name": "SMALTI_STORE_URL", "value": url} in pull["env"]
            assert verify["command"] == ["smalti", "verify", "mega", "--files", "--revision", revision]
            volumes = {each.pop("name"): each for each in spec["volumes"]}
            assert volumes["model-secrets"] == {"secret": {"secretName": secret}}
            claimed = {"persistentVolumeClaim": {"claimName": "weights"}}
            assert volumes["models"] == (claimed if given != settings else {"emptyDir": {}})
        (stages,) = [
            each for each in found if each["metadata"]["name"] == "smalti-stages" and "egress" in each["spec"]
        ]
        ports = {port["port"] for rule in stages["spec"]["egress"] for port in rule["ports"]}
        assert (9000 in ports) == (given != settings)


REFUSED = [
    ("cpu", "broker.existingSecret=", "broker.existingSecret: is not set"),
    ("cpu", "database.existingSecret=", "database.existingSecret: is not set"),
    ("cpu", "objectStore.url=", "objectStore.url, objectStore.existingSecret: are not set"),
    ("cpu", "web.existingSecret=", "web.existingSecret: is not set"),
    ("cpu", "autoscaling.rabbitmqSecret=", "autoscaling.rabbitmqSecret: is not set"),
    ("cpu", "tls.internal.issuerRef.name=", "tls.internal.issuerRef.name: is not set"),
    ("cpu", "tls.internal.source=secrets", "tls.internal.gatewaySecret: is not set"),
    ("minimal", "tls.plaintext=false", "tls.plaintext: must be true"),
    ("minimal", "gateway.auth=mtls", "gateway.auth: mtls needs"),
    ("minimal", "gateway.replicaz=2", "replicaz"),
    ("minimal", "gateway.auth=key", "auth"),
    ("minimal", "services.generator.accelerator.kind=gpu", "kind"),
    ("tpu", "services.generator.accelerator.topology=", "services.generator.accelerator: a tpu needs"),
    (
        "minimal",
        "models[0].name=a,models[0].source.claim.name=x,models[0].source.shipped=true",
        "models[0].source: must have exactly one",
    ),
    ("minimal", "models[0].name=a", "source"),
    ("minimal", "models[0].name=a,models[0].source.s3.address=s3://weights", "sha256"),
    ("minimal", "ingress.enabled=true", "ingress.host: is not set"),
]


@pytest.mark.parametrize(("preset", "setting", "line"), REFUSED)
@pytest.mark.parametrize("program", HELMS)
def test_wrong_values_are_refused_with_one_line(program: str, preset: str, setting: str, line: str) -> None:
    done = helm(program, "template", "smalti", str(CHART), *arguments(preset, (setting,)))
    assert done.returncode != 0
    assert done.stdout == ""
    assert sum(line in each for each in done.stderr.splitlines()) == 1
