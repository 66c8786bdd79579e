"""Workers of the chart beside those for all work: for batches alone, and on several hosts."""

from typing import Any

import jax.numpy as jnp
import pytest

from harness.chart import CHART, HELMS, Object, arguments, helm, objects, rendered
from scripts import chart_memory
from smalti.engines.generator.memory import DEVICE_GIB, Footprint
from smalti.models.bart import DalleBartConfig
from smalti.registry.published import MEGA, MINI
from smalti.services.generator.settings import group_settings

pytestmark = pytest.mark.deploy

ALONE = ("services.generator.batch.shared=false", "services.generator.batch.tolerations[0].key=spot")

REMEDY = "int8 (services.generator.env.SMALTI_GENERATOR_INT8=cache,weights)"


def found(preset: str, kind: str, *settings: str) -> dict[str, Object]:
    """Returns the objects of a kind, by name."""
    every = objects(rendered(preset, settings=settings))
    return {each["metadata"]["name"]: each for each in every if each["kind"] == kind}


def pod(each: Object) -> Any:
    return each["spec"]["template"]["spec"]


def variables(spec: Object) -> dict[str, Any]:
    (container,) = spec["containers"]
    return {each["name"]: each.get("value") for each in container["env"]}


def queues(scaled: Object) -> list[str]:
    triggers = scaled["spec"]["triggers"]
    return [each["metadata"]["queueName"] for each in triggers if each["type"] == "rabbitmq"]


def test_workers_for_batches_scale_to_zero_on_their_queues_alone() -> None:
    scaled = found("cpu", "ScaledObject")
    batch, all_work = (scaled[f"smalti-generator-pictograms{end}"] for end in ("-batch", ""))
    assert (batch["spec"]["minReplicaCount"], batch["spec"]["maxReplicaCount"]) == (0, 20)
    assert batch["spec"]["scaleTargetRef"]["name"] == "smalti-generator-pictograms-batch"
    assert queues(batch) == [r"^smalti\.generate\.[0-9a-f]{12}\.batch$"]
    assert len(batch["spec"]["triggers"]) == 1
    assert queues(all_work) == [r"^smalti\.generate\.[0-9a-f]{12}\.interactive$"]
    assert queues(scaled["smalti-decoder-pictograms"]) == [
        r"^smalti\.decode\.[0-9a-f]{12}\.(interactive|batch)$"
    ]
    assert "smalti-decoder-pictograms-batch" not in scaled


@pytest.mark.parametrize(("settings", "work"), [((), None), (ALONE, "interactive")])
def test_workers_for_batches_are_pods_of_their_own(settings: tuple[str, ...], work: str | None) -> None:
    deployments = found("cpu", "Deployment", *settings)
    batch, interactive = (deployments[f"smalti-generator-pictograms{end}"] for end in ("-batch", ""))
    assert variables(pod(batch))["SMALTI_BROKER_WORK"] == "batch"
    assert variables(pod(interactive)).get("SMALTI_BROKER_WORK") == work
    assert pod(batch)["priorityClassName"] == "smalti-batch"
    assert pod(interactive)["priorityClassName"] == "smalti-interactive"
    assert (pod(batch).get("tolerations") == [{"key": "spot"}]) == bool(settings)
    assert "tolerations" not in pod(interactive)
    selected = interactive["spec"]["selector"]["matchLabels"]
    labels = batch["spec"]["template"]["metadata"]["labels"]
    assert any(labels[key] != value for key, value in selected.items())


def test_classes_of_priority_can_be_those_of_the_cluster() -> None:
    made = found("cpu", "PriorityClass")
    assert made["smalti-batch"]["value"] < made["smalti-interactive"]["value"]
    assert made["smalti-batch"]["preemptionPolicy"] == "Never"
    names = ("priorityClasses.create=false", "priorityClasses.batchName=low")
    assert found("cpu", "PriorityClass", *names) == {}
    deployments = found("cpu", "Deployment", *names)
    assert pod(deployments["smalti-generator-pictograms-batch"])["priorityClassName"] == "low"
    assert "priorityClassName" not in pod(deployments["smalti-generator-pictograms"])


def test_all_stages_can_have_workers_for_batches_at_once() -> None:
    settings = ("batch.maxReplicas=3", "batch.shared=false", "services.ranker.batch.maxReplicas=9")
    scaled = found("cpu", "ScaledObject", *settings)
    most = {
        name.removeprefix("smalti-").removesuffix("-pictograms-batch"): each["spec"]["maxReplicaCount"]
        for name, each in scaled.items()
        if name.endswith("-batch")
    }
    assert most == {"encoder": 3, "generator": 20, "decoder": 3, "ranker": 9, "refiner": 3}
    (counted,) = queues(scaled["smalti-decoder-pictograms"])
    assert counted.endswith("interactive$")


def test_with_valkey_workers_for_batches_follow_the_shards() -> None:
    settings = ("broker.kind=valkey", "services.decoder.batch.maxReplicas=3")
    (trigger,) = found("cpu", "ScaledObject", *settings)["smalti-decoder-pictograms-batch"]["spec"][
        "triggers"
    ]
    assert trigger["metadata"]["query"] == 'max(sum by (instance) (smalti_batch_shards{state="sent"}))'


def test_a_generator_on_several_hosts_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "smalti-generator-pictograms" not in found("tpu-hosts", "Deployment")
    group = found("tpu-hosts", "LeaderWorkerSet")["smalti-generator-pictograms"]
    assert group["metadata"]["annotations"] == {
        "leaderworkerset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    template = group["spec"]["leaderWorkerTemplate"]
    assert (template["size"], template["restartPolicy"]) == (4, "RecreateGroupOnPodRestart")
    spec = template["workerTemplate"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert {8475, 8476} <= {each["containerPort"] for each in container["ports"]}
    assert spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (mounted,) = [each for each in spec["volumes"] if each["name"] == "secrets"]
    assert {"secret": {"name": "smalti-group"}} in mounted["projected"]["sources"]
    secret = found("tpu-hosts", "Secret")["smalti-group"]["stringData"]["SMALTI_GROUP_SECRET"]
    # The settings are whole with what a LeaderWorkerSet adds.
    given = {name: value for name, value in variables(spec).items() if name.startswith("SMALTI_GROUP_")}
    added = {"LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "3", "LWS_LEADER_ADDRESS": "g-0.g.default"}
    for name, value in {**given, **added, "SMALTI_GROUP_SECRET": secret}.items():
        monkeypatch.setenv(name, value)
    assert (group_settings().size, group_settings().index) == (4, 3)
    assert variables(spec)["SMALTI_GENERATOR_MESH"] == "4x4"


def test_only_a_group_reaches_its_ports() -> None:
    policies = found("tpu-hosts", "NetworkPolicy")
    group = policies["smalti-group-pictograms"]["spec"]
    assert group["ingress"] == [{"from": [{"podSelector": group["podSelector"]}]}]
    assert group["egress"] == [{"to": [{"podSelector": group["podSelector"]}]}]
    assert group["podSelector"]["matchLabels"]["smalti-model"] == "pictograms"
    others = {
        port["port"]
        for name, each in policies.items()
        if name != "smalti-group-pictograms"
        for rule in each["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    assert not others & {8475, 8476}
    assert "smalti-group-pictograms" not in found("tpu", "NetworkPolicy")


@pytest.mark.parametrize(
    ("size", "kind", "slots", "mesh", "int8"),
    [
        ("mega", "tpu-v5-lite-podslice", 128, "1x1", ""),
        ("mega", "tpu-v5-lite-podslice", 128, "1x1", "weights"),
        ("mega", "tpu-v5-lite-podslice", 256, "1x1", "cache"),
        ("mega", "tpu-v5-lite-podslice", 256, "1x1", "weights, cache"),
        ("mega", "tpu-v5-lite-podslice", 64, "1x1", ""),
        ("mega", "tpu-v5-lite-podslice", 512, "1x4", ""),
        ("mega", "tpu-v5-lite-podslice", 512, "2x4", ""),
        ("mini", "NVIDIA-L4", 1024, "1x1", ""),
        ("mini", "NVIDIA-L4", 1024, "1x1", "cache"),
        ("mega", "NVIDIA-L4", 128, "1x1", ""),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(
    size: str, kind: str, slots: int, mesh: str, int8: str
) -> None:
    """By the same figures as those of the generator itself."""
    data, model = map(int, mesh.split("x"))
    tpu = kind.startswith("tpu")
    chip = chart_memory.TYPES[kind]
    config = DalleBartConfig.from_fields({"mini": MINI, "mega": MEGA}[size])
    footprint = Footprint.of(
        config, jnp.bfloat16, on_tpu=tpu, int8_cache="cache" in int8, int8_weights="weights" in int8
    )
    needed = footprint.per_device(slots, data, model) / 2**30
    variable = int8.replace(",", "\\,")
    settings = (
        *(f"models[0].name={size}", "models[0].source.claim.name=x", f"models[0].size={size}"),
        *(f"services.generator.slots={slots}", f"services.generator.mesh={mesh}"),
        f"services.generator.accelerator.type={kind}",
        f"services.generator.accelerator.count={data * model}",
        *((f"services.generator.accelerator.topology={mesh}",) if tpu else ()),
        *((f"services.generator.env.SMALTI_GENERATOR_INT8={variable}",) if int8 else ()),
    )
    done = helm("helm4", "template", "x", str(CHART), *arguments("tpu" if tpu else "nvidia", settings))
    assert (done.returncode != 0) == (needed > DEVICE_GIB[chip])
    line = f"models.{size} on {chip} {mesh} needs {needed:.1f} GiB of {DEVICE_GIB[chip]:.1f}: fewer slots"
    assert (line in done.stderr) == (needed > DEVICE_GIB[chip])
    all_short = "cache" in int8 and "weights" in int8
    assert (REMEDY in done.stderr) == (needed > DEVICE_GIB[chip] and not all_short)


def test_int8_for_all_services_counts_unless_the_generator_has_its_own() -> None:
    settings = (
        *("models[0].name=mega", "models[0].source.claim.name=x", "models[0].size=mega"),
        *("services.generator.slots=128", "services.generator.accelerator.type=tpu-v5-lite-podslice"),
        "env.SMALTI_GENERATOR_INT8=weights",
    )
    assert helm("helm3", "template", "x", str(CHART), *arguments("tpu", settings)).returncode == 0
    own = (*settings, "services.generator.env.SMALTI_GENERATOR_INT8=")
    assert REMEDY in helm("helm3", "template", "x", str(CHART), *arguments("tpu", own)).stderr


def test_a_model_of_another_size_and_a_slice_are_known_too() -> None:
    size = ("models[0].size.weights=5000000000", "models[0].size.slot=200000000")
    model = ("models[0].name=m", "models[0].source.claim.name=x", *size, "services.generator.slots=20")
    given = (*model, "services.generator.accelerator.resource=nvidia.com/mig-1g.10gb")
    done = helm("helm3", "template", "x", str(CHART), *arguments("nvidia", given))
    assert "models.m on mig-1g.10gb 1x1 needs 8.5 GiB of 7.5: fewer slots" in done.stderr
    hub = ("models[0].source.hub.repository=dalle-mini/dalle-mega", "services.generator.slots=1000")
    done = helm("helm3", "template", "x", str(CHART), *arguments("nvidia", ("models[0].name=m", *hub)))
    assert "models.m on H100 1x1 needs 108.3 GiB of 60.0" in done.stderr


def test_the_file_of_memory_is_that_of_the_models() -> None:
    assert chart_memory.FILE.read_text(encoding="utf-8") == chart_memory.text(), (
        "write it with python -m scripts.chart_memory"
    )


def test_a_service_has_its_own_budget_spread_and_probes() -> None:
    named = ("services.decoder", "gateway", "web")
    constraint = {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    settings = tuple(
        f"{each}.{setting}"
        for each in named
        for setting in (
            "pdb.maxUnavailable=50%",
            *(f"spread[0].{key}={value}" for key, value in constraint.items()),
            "probes.readiness.periodSeconds=9",
        )
    )
    off = ("services.ranker.pdb.enabled=false",)
    budgets = found("cpu", "PodDisruptionBudget", *settings, *off)
    deployments = found("cpu", "Deployment", *settings, *off)
    for name in ("decoder-pictograms", "gateway", "web"):
        assert budgets[f"smalti-{name}"]["spec"]["maxUnavailable"] == "50%"
        deployment = deployments[f"smalti-{name}"]
        (spread,) = pod(deployment)["topologySpreadConstraints"]
        assert spread.pop("labelSelector") == deployment["spec"]["selector"]
        assert spread == constraint
        (container,) = pod(deployment)["containers"]
        assert container["readinessProbe"]["periodSeconds"] == 9
        assert container["livenessProbe"]["periodSeconds"] == 20
    assert budgets["smalti-encoder-pictograms"]["spec"]["maxUnavailable"] == 1
    assert "smalti-ranker-pictograms" not in budgets


def test_gateways_and_web_services_scale_without_keda() -> None:
    settings = ("gateway.autoscaling.maxReplicas=6", "web.image=r.example/web:1")
    scaler = found("minimal", "HorizontalPodAutoscaler", *settings)["smalti-gateway"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 6)
    deployments = found("minimal", "Deployment", *settings)
    assert "replicas" not in deployments["smalti-gateway"]["spec"]
    assert deployments["smalti-web"]["spec"]["replicas"] == 1
    assert pod(deployments["smalti-web"])["containers"][0]["image"] == "r.example/web:1"


REFUSED = [
    ("minimal", "services.decoder.batch.maxReplicas=2", "services.decoder.batch.maxReplicas: needs"),
    ("minimal", "services.decoder.batch.shared=false", "services.decoder.batch.shared: is false"),
    (
        "cpu",
        "broker.kind=valkey,services.generator.batch.shared=false",
        "services.generator.batch.minReplicas: must be 1 or more",
    ),
    ("minimal", "services.decoder.mesh=1x2", "services.decoder: only a generator"),
    ("minimal", "services.generator.group.size=2", "services.generator.mesh: is not set"),
    ("minimal", "services.generator.mesh=two", "mesh"),
    ("minimal", "web.pdb.minAvailable=1,web.pdb.maxUnavailable=1", "pdb"),
    ("minimal", "gateway.spread[0].maxSkew=1", "topologyKey"),
    ("tpu-hosts", "services.generator.group.size=1", "size"),
    ("tpu-hosts", "services.generator.group.size=2", "topology 4x4 has 16 chips"),
    ("tpu-hosts", "services.generator.mesh=1x8", "services.generator.mesh: 1x8 is of 8 devices"),
    ("tpu", "services.generator.accelerator.count=4", "topology 1x1 has 1 chips"),
]


@pytest.mark.parametrize(("preset", "setting", "line"), REFUSED)
def test_wrong_workers_are_refused_with_one_line(preset: str, setting: str, line: str) -> None:
    for program in HELMS:
        done = helm(program, "template", "smalti", str(CHART), *arguments(preset, (setting,)))
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert sum(line in each for each in done.stderr.splitlines()) == 1, done.stderr
