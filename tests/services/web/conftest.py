"""What the tests of the web service share: one that is served in this process, with the specification of the shipped
model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import openai
import pytest

from harness.web import SHIPPED, WebHarness
from smalti.registry.spec import ModelSpec


class MakeWeb(Protocol):
    def __call__(self, **settings: Any) -> WebHarness: ...


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    """The specification of the shipped model; nothing is computed with it."""
    return SHIPPED


@pytest.fixture
def make_web(tmp_path: Path, spec: ModelSpec) -> Iterator[MakeWeb]:
    """Serves web services with settings, each with a gateway of its own."""
    made: list[WebHarness] = []

    def make(**settings: Any) -> WebHarness:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(WebHarness(folder, spec, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def with_batches() -> bool:
    """Whether the web service of a module draws batches, too; a module has its own fixture to say so."""
    return False


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, with_batches: bool
) -> Iterator[WebHarness]:
    served = WebHarness(tmp_path_factory.mktemp("web"), spec, client_rate=1000, batches=with_batches)
    yield served
    served.close()


@pytest.fixture
def web(shared: WebHarness) -> Iterator[WebHarness]:
    """The web service of a module, without jobs."""
    yield shared
    shared.paused.clear()
    shared.clear()


@pytest.fixture
def http(web: WebHarness) -> Iterator[httpx2.Client]:
    """A client of the web service."""
    with web.client() as client:
        yield client


@pytest.fixture
def client(web: WebHarness) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the web service."""
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def refusal(call: Any, status: int) -> openai.APIStatusError:
    """Returns the error with which OpenAI's client refuses a call; it has the status."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    return caught.value
