"""An installed system as its clients see it."""

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

from faults.layout import Layout
from faults.system import client_of
from harness.waiting import wait_until
from smalti.client import Client
from smalti.registry.folder import ModelFolder
from smalti.storage import ObjectStore, StoreSettings, open_store

HTTP_SECONDS: Final = 300.0


class DeployedSystem:
    """What `faults.accounting` needs, and addresses that do not change."""

    def __init__(
        self, models: Mapping[str, ModelFolder], *, gateway: str, web: str, store: str, login: str
    ) -> None:
        """Connects to nothing yet.

        Args:
            models: the revisions that are served in the course of time, by their names.
            gateway: address of the gateways.
            web: URL of the web service.
            store: address of the store's S3 interface.
            login: the store's keys, with a colon between them.
        """
        self.models = models
        self.layout = Layout(models={name: name for name in models})
        self.gateway = gateway
        self.web = web
        self.store: ObjectStore = open_store(
            StoreSettings(url=SecretStr(f"s3+http://{login}@{store}/smalti"))
        )

    @property
    def model(self) -> ModelFolder:
        """The model of the first installation."""
        return next(iter(self.models.values()))

    @contextmanager
    def client(self, gateway: str = "", *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Client]:
        """Yields a client of the gateways, or of one address; by default it does not retry."""
        with client_of(gateway or self.gateway, attempts=attempts, retry_seconds=retry_seconds) as client:
            yield client

    @contextmanager
    def clients(self, *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Sequence[Client]]:
        """Yields one client: the address stands for all gateways."""
        with self.client(attempts=attempts, retry_seconds=retry_seconds) as client:
            yield [client]

    def executions(self, *names: str) -> dict[tuple[str, str, int | None], int]:
        """Returns nothing: logs go with their pods or containers, so what was done twice is not counted here."""
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
