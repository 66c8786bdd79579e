"""Writes the chart's README: every value, with its default and what the comment above it in values.yaml says."""

import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "smalti"
README: Final = CHART / "README.md"
COMMENT: Final = "# -- "
MAX_DEFAULT: Final = 120
"""Length of a default beyond which it is not shown."""

HEAD: Final = """# The Helm chart

Text to pictures with DALL·E mini's architecture: gateway, web service, and the stages of each model. How to install it
is in [deployment](../../../docs/deploy.md). Written by `python -m scripts.chart_readme`.

| file | for |
|---|---|
{presets}

A value that is misspelt, or of the wrong kind, is refused by `values.schema.json` before anything is applied.

| value | meaning | default |
|---|---|---|
{values}

## What a service may have

Each of `services.encoder`, `services.generator`, `services.decoder`, `services.ranker` and `services.refiner`, and of
the same names under `services` of a model:

| value | meaning |
|---|---|
| `replicas`, `resources`, `env`, `nodeSelector`, `tolerations`, `affinity` | as everywhere |
| `image` | another image than the chart's |
| `slots`, `concurrency` | candidates of a generator, and messages of any stage, at the same time |
| `accelerator.kind` | `none`, `nvidia` or `tpu` |
| `accelerator.count` | devices of each process; 1 by default |
| `accelerator.type` | product of the GPU (`nvidia.com/gpu.product`), or type of the TPU (`tpu-v6e-slice`) |
| `accelerator.topology` | topology of the TPU, such as `1x1` |
| `accelerator.resource` | another resource than `nvidia.com/gpu`, such as `nvidia.com/mig-1g.10gb` |
| `accelerator.cuda` | `cuda12` or `cuda13`: which image |
| `autoscaling.minReplicas`, `autoscaling.maxReplicas` | bounds; by default `replicas` and four times as many |
| `autoscaling.messages` | messages for each process, with KEDA |
| `probes.startupSeconds` | time for weights and programs; 900 by default |
| `probes.readiness`, `probes.liveness` | `periodSeconds`, `timeoutSeconds` and `failureThreshold` of these probes |
| `pdb.enabled`, `pdb.maxUnavailable`, `pdb.minAvailable` | its PodDisruptionBudget: one pod at a time by default |
| `spread` | its topology spread constraints: by hosts and zones where possible by default; `[]` for none |
| `mesh` | `SMALTI_GENERATOR_MESH` of a generator: together `accelerator.count` times `group.size` devices |
| `group.size` | hosts of a [group](#a-generator-on-several-hosts), each with `accelerator.count` devices |
| `group.existingSecret` | name of a secret with `SMALTI_GROUP_SECRET`; otherwise the chart makes one |
| `group.exclusiveTopology` | label of the nodes that a group has for itself; by default GKE's node pool for TPUs |
| `batch` | [workers for batches](#workers-for-batches) |

`gateway` and `web` may have `image`, `env`, `nodeSelector`, `tolerations`, `affinity`, `probes.readiness`,
`probes.liveness`, `pdb` and `spread` too, and `autoscaling: {{minReplicas, maxReplicas}}`, an HPA by their processors.

## Workers for batches

Every worker takes batches too, when nobody waits. `batch` of a service adds workers that take nothing else: a
Deployment of their own with the PriorityClass for batches, and with KEDA a ScaledObject that counts only the queues
of batches. It has the fields of a service, for what is different from the
interactive ones, such as cheaper nodes, and

| value | meaning |
|---|---|
| `batch.replicas` | processes without autoscaling; 0 by default |
| `batch.minReplicas`, `batch.maxReplicas` | bounds with autoscaling; by default 0 and `replicas`. An HPA keeps one |
| `batch.messages` | messages for each process, with KEDA; 2 by default, which is as many shards as a worker takes |
| `batch.shared` | whether interactive workers take batches too; they do by default |

With `shared`, no accelerator is idle while there is a batch, and batches go on where no node is free for workers of
their own. With `shared: false` no shard is in the memory and the threads of an interactive worker.

`batch` at the top of the values is for all stages; what a service says goes before.

Gateways send shards while any generator of the model is there, so a stage needs an interactive worker even if all
batches are drawn by others. With Valkey, KEDA counts the shards of all models together, and no jobs with the priority
of batches. A worker that goes while it has a shard returns it, and another one draws it.

## A generator on several hosts

With `group`, each generator is a group of pods of a [LeaderWorkerSet](https://lws.sigs.k8s.io) (v1), whose controller
must be in the cluster; it makes the headless Service of the group, and tells each pod its index and leader. All pods
are of one template: the leader takes work, the others
[follow](../../../docs/services.md#a-generator-on-several-hosts) and have the same probes, and when one goes, all are
made again. The pods of a model's groups may talk with each other at every port, since JAX picks some, and nobody else
may. What they say is not encrypted. `values-tpu-hosts.yaml` is an example; with its four hosts of four chips,
`topology: 4x4` is `accelerator.count: 4` times `group.size: 4`. No group has been run on GPUs or TPUs.

## Whether a model fits

The chart refuses a generator that needs more memory than its devices have, such as `models.mega on v5e 1x1 needs
16.4 GiB of 16.0: fewer slots, int8 (services.generator.env.SMALTI_GENERATOR_INT8=cache,weights), or more devices, such
as 1x4`. It adds the weights of the decoder, in bfloat16, to the keys and values of the slots, divides both among the
devices of the mesh, and leaves 128 MiB for programs. What
[`SMALTI_GENERATOR_INT8`](../../../docs/performance.md#int8) names is counted as int8, with its scales. It knows v5e,
v6e, v5p, L4, H100 and slices of MIG, of whose memory JAX takes three quarters, and the sizes `mini` and `mega`,
which follow from the repository of the hub or from `size` of a model. `size: {{weights, slot}}` are the bytes of
another model: those of the decoder's weights; and of a slot, 4 for each layer, feature, and position, of which an
image token has two and a text token one. They are taken as they are: with int8, give the bytes of that. Of anything
else it says nothing.

## Where a model comes from

| source | meaning |
|---|---|
| `shipped: true` | the model in the images |
| `hub: {{repository, revision, licence, tokenSecret}}` | pulled from the Hugging Face hub at the start of each pod |
| `s3: {{address, sha256, url, existingSecret, claim}}` | pulled from a store at the start of each pod |
| `claim: {{name}}` | a PersistentVolumeClaim with the model's folder, named as the model |
| `image: {{reference, pullPolicy}}` | an image that holds the model's folder, named as the model; needs image volumes |

`smalti push MODEL s3://BUCKET/PREFIX` prints the `sha256` of a model at this `address`. `url`
(`s3+https://HOST/BUCKET`) and `existingSecret` name another store than `objectStore`. With a `claim` that many pods may
write, the first pod pulls for all.

All but the shipped one are compared with the checksums in `model.json` before a service starts, and with the model's
`revision` (`sha256:` and 64 digits) if it has one.
"""


def main() -> None:
    """Writes the page."""
    README.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the page."""
    presets = [f"| `{path.name}` | {described(path)} |" for path in sorted(CHART.glob("values-*.yaml"))]
    return HEAD.format(presets="\n".join(presets), values="\n".join(rows()))


def described(path: Path) -> str:
    """Returns the comment at the top of a preset."""
    lines = path.read_text(encoding="utf-8").splitlines()
    top = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in top)


def rows() -> list[str]:
    """Returns a row for each value with a comment; ends with a line if one has none."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    found: list[tuple[tuple[str, ...], str]] = []
    path: list[str] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            begins = stripped.startswith(COMMENT)
            comment = stripped.removeprefix(COMMENT) if begins else comment and f"{comment} {stripped[2:]}"
            continue
        match = re.fullmatch(r"( *)([A-Za-z][A-Za-z0-9]*):.*", line)
        if match and len(match[1]) % 2 == 0 and len(match[1]) // 2 <= len(path):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                found.append((tuple(path), comment))
        comment = ""
    covered = {path for path, _ in found}
    if bare := [
        path for path in leaves(values) if not any(path[:end] in covered for end in range(1, len(path) + 1))
    ]:
        sys.exit(
            f"chart_readme: values.yaml says nothing of {'.'.join(bare[0])}; put a comment with two dashes above it"
        )
    return [f"| `{'.'.join(path)}` | {said} | {default_of(values, path)} |" for path, said in found]


def leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Returns the paths of all values that hold no others."""
    if not isinstance(values, dict) or not values:
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]


def default_of(values: Any, path: tuple[str, ...]) -> str:
    """Returns a value as the table shows it."""
    for key in path:
        values = values[key]
    if values in ("", [], {}):
        return "none"
    text = (
        yaml.safe_dump(values, default_flow_style=True, width=10**6, sort_keys=False)
        .removesuffix("...\n")
        .strip()
    )
    return f"`{text}`" if len(text) <= MAX_DEFAULT else "see below"


if __name__ == "__main__":
    main()
