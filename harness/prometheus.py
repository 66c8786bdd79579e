"""A real Prometheus: what it reads, and what its rules say."""

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from harness.processes import started
from harness.servers import HOST, free_port
from harness.waiting import wait_until

START_SECONDS = 120.0
"""Time limit of the start and the first scrape, on a busy machine."""


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, url: str) -> None:
        """Takes its address."""
        self.url = url

    def series(self, query: str) -> list[Mapping[str, Any]]:
        """Returns the series that a query finds now.

        Raises:
            ValueError: the query is refused; the message is the answer.
            OSError: Prometheus does not answer, or still starts.
        """
        found: list[Mapping[str, Any]] = self._get("query", query=query)["result"]
        return found

    def value(self, query: str) -> float:
        """Returns the sum of what a query finds; 0 if it finds nothing."""
        return sum(float(each["value"][1]) for each in self.series(query))

    def rules(self) -> list[Mapping[str, Any]]:
        """Returns every rule with its `health`, `lastError` and `state`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **asked: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            raise ValueError(error.read().decode()) from error


@contextmanager
def prometheus(
    folder: Path, configuration: Mapping[str, Any], targets: Sequence[str]
) -> Iterator[Prometheus]:
    """Runs Prometheus until the block ends, and enters it when every target was read once.

    Args:
        folder: for its configuration, its data and its log.
        configuration: what the file has; the targets of each job are replaced.
        targets: addresses of metrics, `HOST:PORT`.
    """
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed; install Debian's package of that name"
    jobs = [
        {key: value for key, value in job.items() if not key.endswith("_sd_configs")}
        | {"static_configs": [{"targets": list(targets)}]}
        for job in configuration["scrape_configs"]
    ]
    file, port = folder / "prometheus.yaml", free_port()
    file.write_text(yaml.safe_dump({**configuration, "scrape_configs": jobs}), encoding="utf-8")
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    command += [f"--web.listen-address={HOST}:{port}", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("wb") as output, started(command, stdout=output, stderr=subprocess.STDOUT):
        found = Prometheus(f"http://{HOST}:{port}")

        def reads() -> bool:
            try:
                return found.value("sum(up)") == len(targets)
            except OSError:
                return False

        wait_until(reads, START_SECONDS, problem="Prometheus does not read every target")
        yield found
