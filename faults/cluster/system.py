"""The addresses and secrets of the chart's installation."""

import base64
from collections.abc import Mapping

from faults.cluster.kubernetes import Namespace
from faults.cluster.release import RELEASE
from faults.deployed.system import DeployedSystem
from smalti.registry.folder import ModelFolder

GATEWAY_PORT, STORE_PORT = 50050, 8333


class ClusterSystem(DeployedSystem):
    """The system at the addresses of its Services, which do not change."""

    def __init__(self, namespace: Namespace, models: Mapping[str, ModelFolder]) -> None:
        """Reads where the services are.

        Args:
            namespace: where the chart is installed.
            models: the revisions that are served in the course of time, by their names.
        """
        self.namespace = namespace
        keys = secret(namespace, f"{RELEASE}-store")
        super().__init__(
            models,
            gateway=f"{namespace.address(f'{RELEASE}-gateway')}:{GATEWAY_PORT}",
            web=f"http://{namespace.address(f'{RELEASE}-web')}",
            store=f"{namespace.address(f'{RELEASE}-store')}:{STORE_PORT}",
            login=f"{keys['SMALTI_STORE_ACCESS_KEY']}:{keys['SMALTI_STORE_SECRET_KEY']}",
        )


def secret(namespace: Namespace, name: str) -> dict[str, str]:
    """Returns the values of a Secret."""
    data = namespace.one("secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
