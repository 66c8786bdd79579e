"""What a phase in a cluster works with."""

from dataclasses import dataclass
from typing import Final

from faults.cluster.kubernetes import Namespace
from faults.cluster.release import Release
from faults.cluster.system import ClusterSystem
from faults.deployed.trial import Trial

CLAIM: Final = "smalti-next"
"""The claim with the next revision of the model."""


@dataclass(kw_only=True)
class ClusterTrial(Trial):
    """The run of a phase in a cluster."""

    system: ClusterSystem
    namespace: Namespace
    release: Release

    def code(self) -> list[str]:
        """Returns the settings of the chart for the next version of the code."""
        return [f"image.tag={self.next_tag}"] * bool(self.next_tag)

    def next_model(self) -> list[str]:
        """Returns the settings of the chart for the next revision of the model."""
        return self._model(f"claim.name={CLAIM}")

    def stored_model(self, address: str, sha256: str) -> list[str]:
        """Returns the settings of the chart for a model that is pulled from the chart's store."""
        return self._model(f"s3.address={address}", f"s3.sha256={sha256}")

    def _model(self, *source: str) -> list[str]:
        return [
            f"models[0].name={self.system.model.name}",
            *(f"models[0].source.{each}" for each in source),
        ]
