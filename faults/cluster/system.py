"""The installed system as its clients see it."""

import base64
import itertools
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pydantic import SecretStr

from faults.cluster.kubernetes import Namespace
from faults.cluster.release import RELEASE
from faults.layout import Layout
from faults.system import client_of
from harness.waiting import wait_until
from smalti.client import Client
from smalti.registry.folder import ModelFolder
from smalti.storage import ObjectStore, StoreSettings, open_store

GATEWAY_PORT, STORE_PORT = 50050, 8333
HTTP_SECONDS: Final = 300.0


class ClusterSystem:
    """What `faults.accounting` needs, and the addresses of Services, which do not change."""

    def __init__(self, namespace: Namespace, models: Mapping[str, ModelFolder]) -> None:
        """Reads where the services are.

        Args:
            namespace: where the chart is installed.
            models: the revisions that are served in the course of time, by their names.
        """
        self.namespace = namespace
        self.models = models
        self.layout = Layout(models={name: name for name in models})
        self.gateway = f"{namespace.address(f'{RELEASE}-gateway')}:{GATEWAY_PORT}"
        self.web = f"http://{namespace.address(f'{RELEASE}-web')}"
        keys = secret(namespace, f"{RELEASE}-store")
        login = f"{keys['SMALTI_STORE_ACCESS_KEY']}:{keys['SMALTI_STORE_SECRET_KEY']}"
        address = f"{namespace.address(f'{RELEASE}-store')}:{STORE_PORT}"
        self.store: ObjectStore = open_store(
            StoreSettings(url=SecretStr(f"s3+http://{login}@{address}/smalti"))
        )

    @property
    def model(self) -> ModelFolder:
        """The model of the first installation."""
        return next(iter(self.models.values()))

    @contextmanager
    def client(self, gateway: str = "", *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Client]:
        """Yields a client of the gateways' Service, or of one address; by default it does not retry."""
        with client_of(gateway or self.gateway, attempts=attempts, retry_seconds=retry_seconds) as client:
            yield client

    @contextmanager
    def clients(self, *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Sequence[Client]]:
        """Yields one client: the Service chooses the gateway."""
        with self.client(attempts=attempts, retry_seconds=retry_seconds) as client:
            yield [client]

    def executions(self, *names: str) -> dict[tuple[str, str, int | None], int]:
        """Returns nothing: the logs of pods that have gone are gone, so what was done twice is not counted here."""
        return {}

    def drawable(self) -> set[str]:
        """Returns the revisions that can be drawn now."""
        with self.client(attempts=4, retry_seconds=60) as client:
            return {model.reference.revision for model in client.models() if model.available}

    def draw_by_http(self, prompt: str, n: int, seconds: float = HTTP_SECONDS) -> list[bytes]:
        """Draws pictures through the web service's HTTP API, asking again while it does not answer."""
        asked = json.dumps({"prompt": prompt, "n": n, "response_format": "b64_json"}).encode()
        headers = {"content-type": "application/json"}
        deadline = time.monotonic() + seconds
        for _ in itertools.count():
            request = urllib.request.Request(f"{self.web}/v1/images/generations", asked, headers)
            try:
                with urllib.request.urlopen(request, timeout=seconds) as answer:
                    return [base64.b64decode(each["b64_json"]) for each in json.load(answer)["data"]]
            except OSError as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in (502, 503)
                if refused or time.monotonic() > deadline:
                    raise
                time.sleep(1)
        raise AssertionError

    def wait_until_drawable(self, revision: str, seconds: float) -> None:
        """Waits until a revision can be drawn."""

        def look() -> bool:
            time.sleep(1)
            return revision in self.drawable()

        wait_until(look, seconds, problem=f"{revision[:19]} cannot be drawn after {seconds:.0f} s")


def secret(namespace: Namespace, name: str) -> dict[str, str]:
    """Returns the values of a Secret."""
    data = namespace.one("secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
