"""Installs the chart, runs the phases, and takes everything away again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from faults.accounting import Account
from faults.cluster.kubernetes import Namespace
from faults.cluster.release import Release
from faults.cluster.surroundings import disk, disks_of, make_disks, names_served, needs_disks, needs_names
from faults.cluster.system import ClusterSystem
from faults.cluster.trial import CLAIM, ClusterTrial
from faults.deployed.models import Expected, make_next_revision, shipped
from faults.deployed.programs import ProgramError
from faults.deployed.trial import FIRST, NEXT, Accounts, Phase, PhaseResult, Say
from faults.tally import Tally
from harness.chart import CHART
from smalti.errors import InvalidInputError

VALUES: Final = (CHART / "values-minimal.yaml", Path(__file__).with_name("values.yaml"))
INSTALL: Final = Phase[ClusterTrial](
    "install", "`helm install --wait` with the chart's own servers", "everything is ready", lambda _: None
)


@dataclass(frozen=True)
class Options:
    """How the proof is run."""

    folder: Path
    """New folder for values, pictures, logs, and the disks of a cluster without any."""
    namespace: str = "smalti"
    kubectl: str = "kubectl"
    helm: str = "helm"
    dns: str = ""
    """Address that kubelet gives to pods for names, in a cluster without a server for them."""
    next_tag: str = ""
    """Tag of the images of the next version of the code."""
    values: tuple[Path, ...] = ()
    """Further files of values."""
    keep: bool = False
    """Whether the installation is left as it is."""


@dataclass
class Runner:
    """Runs the phases one after another; one that fails does not stop the others."""

    options: Options
    say: Say = lambda text: None
    facts: dict[str, str] = field(default_factory=dict)
    """Facts on which the results depend."""
    results: list[PhaseResult] = field(default_factory=list)
    """Results so far."""

    def run(self, phases: Sequence[Phase[ClusterTrial]]) -> None:
        """Installs the chart, runs the phases, and takes everything away."""
        namespace = Namespace(self.options.namespace, self.options.kubectl)
        models = {FIRST: shipped(), NEXT: make_next_revision(self.options.folder / "models" / shipped().name)}
        with ExitStack() as stack:
            references = {folder.revision: Expected(folder) for folder in models.values()}
            for each in references.values():
                stack.callback(each.close)
            stack.enter_context(self._surroundings(namespace))
            release = Release(
                namespace, self.options.helm, self.options.folder, (*VALUES, *self.options.values)
            )
            self.facts["Kubernetes"] = release.version
            self.say(f"installs the chart in {namespace.name}, Kubernetes {release.version}")
            if not self.options.keep:
                stack.callback(release.remove)
            seconds = release.install()
            self.say(f"install: ready after {seconds:.0f} s")
            self.results.append(PhaseResult(INSTALL, Tally(), (), (), seconds))
            system = ClusterSystem(namespace, models)
            accounts = Accounts(system, references, self.say)

            def trial_of(account: Account) -> ClusterTrial:
                return ClusterTrial(
                    system=system,
                    account=account,
                    folder=self.options.folder,
                    next_tag=self.options.next_tag,
                    namespace=namespace,
                    release=release,
                )

            for phase in phases:
                self.results.append(accounts.run(phase, trial_of))
                if not self.results[-1].passed:
                    self._save(namespace, phase)

    @contextmanager
    def _surroundings(self, namespace: Namespace) -> Iterator[None]:
        """Makes the namespace, and what the cluster lacks, while the block runs."""
        options = self.options
        with ExitStack() as stack:
            if namespace.exists():
                raise InvalidInputError(
                    "--namespace", f"{namespace.name} is there already; name another one, or delete it"
                )
            if not options.keep:
                # Disks go after the namespace, whose claims hold them.
                stack.callback(self._remove_disks, namespace)
                stack.callback(namespace.remove)
            namespace.make()
            if needs_disks(namespace):
                make_disks(namespace, options.folder / "disks")
            if needs_names(namespace):
                if not options.dns:
                    raise InvalidInputError(
                        "--dns",
                        "is not set; the cluster has no server for names, so give kubelet's --cluster-dns",
                    )
                stack.enter_context(names_served(namespace, options.dns, options.folder))
            self._make_claim(namespace)
            yield

    def _remove_disks(self, namespace: Namespace) -> None:
        """Deletes the disks of the chart's servers and of the next revision."""
        names = [f"{namespace.name}-{CLAIM}", *disks_of(namespace)]
        namespace.kubectl("delete", "persistentvolumes", "--ignore-not-found", *names)

    def _make_claim(self, namespace: Namespace) -> None:
        """Makes the claim with the next revision of the model, which is on this machine, the node."""
        folder = self.options.folder / "models"
        namespace.apply(
            disk(f"{namespace.name}-{CLAIM}", folder, claim={"name": CLAIM, "namespace": namespace.name}),
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": CLAIM, "namespace": namespace.name},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "",
                    "volumeName": f"{namespace.name}-{CLAIM}",
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            },
        )

    def _save(self, namespace: Namespace, phase: Phase[ClusterTrial]) -> None:
        """Keeps what the cluster says of a phase that failed."""
        with suppress(ProgramError):
            said = namespace.kubectl("get", "pods,events", "--output", "wide")
            (self.options.folder / f"{phase.name}.txt").write_text(said, encoding="utf-8")
