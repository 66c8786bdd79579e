"""Fields of requests with any content: they are read, or refused by name; nothing else happens."""

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import InvalidInputError, SmaltiError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.api.requests import (
    check_request_id,
    page_size,
    page_token,
    parse_job_filter,
    parse_job_spec,
    parse_page_token,
)
from smalti.services.gateway.database.tables import PageCursor
from smalti.services.gateway.models import ModelCard, RevisionState
from smalti.services.gateway.settings import GatewaySettings
from smalti.v1 import image_pb2, job_pb2

SETTINGS = GatewaySettings()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TOKEN = TEXT | st.text(st.sampled_from("ABCDabcd0123-_="), max_size=60)
NUMBER = st.sampled_from([-(2**31), -1, 0, 1, 2**20, 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1)
FLOAT = st.floats(width=32) | st.just(0.5)


@pytest.fixture(scope="module")
def state(tiny: ModelFolder) -> RevisionState:
    card = ModelCard.from_spec(ModelSpec.load(tiny))
    return RevisionState(card=card, stages=frozenset(), slots=0)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.uuids(), TEXT, TOKEN)
def test_page_tokens(created: int, job: uuid.UUID, label: str, other: str) -> None:
    request = image_pb2.ListJobsRequest(labels={"a": label})
    last = PageCursor(created, str(job))
    request.page_token = page_token(request, last)
    assert parse_page_token(request) == last
    # Another filter, another sign, or any other text.
    for change in (request.page_token[:-1], request.page_token + "A", request.page_token.swapcase(), other):
        changed = image_pb2.ListJobsRequest(labels={"a": label}, page_token=change)
        if change and change != request.page_token:
            with pytest.raises(InvalidInputError, match=r"^page_token: is damaged"):
                parse_page_token(changed)
    moved = image_pb2.ListJobsRequest(labels={"b": label}, page_token=request.page_token)
    with pytest.raises(InvalidInputError, match=r"^page_token: "):
        parse_page_token(moved)


@given(st.uuids(version=4) | st.uuids(version=1), TEXT)
def test_request_ids(valid: uuid.UUID, other: str) -> None:
    for written in (str(valid), str(valid).upper(), other):
        try:
            found = check_request_id(written)
        except InvalidInputError as error:
            assert error.field == "request_id"  # noqa: PT017
        else:
            assert found == (str(valid) if found else None)


@given(NUMBER, st.lists(NUMBER, max_size=12), st.dictionaries(TEXT, TEXT, max_size=3))
def test_filters(size: int, states: list[int], labels: dict[str, str]) -> None:
    request = image_pb2.ListJobsRequest(states=states, labels=labels)  # type: ignore[arg-type]
    for read in (lambda: page_size(size), lambda: parse_job_filter(request, SETTINGS)):
        try:
            read()
        except InvalidInputError as error:
            assert error.field.partition(".")[0].partition("[")[0] in ("page_size", "states", "labels")  # noqa: PT017


FIELDS = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={
        "n": NUMBER, "candidates": NUMBER, "first_candidate": NUMBER, "seed": NUMBER, "diversity": FLOAT,
        "vary": st.booleans(), "upscale": NUMBER,
    },
)  # fmt: skip
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "guidance_scale": FLOAT, "temperature": FLOAT, "top_k": NUMBER, "top_p": FLOAT, "layout_share": FLOAT,
    },
)  # fmt: skip


@given(fields=FIELDS, sampling=SAMPLING)
def test_jobs(state: RevisionState, fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    request = image_pb2.CreateImagesRequest()
    request.parameters.MergeFrom(job_pb2.ImageParameters(**fields))
    for name, value in sampling.items():
        setattr(request.parameters.sampling, name, value)
    try:
        job = parse_job_spec(request, state, SETTINGS)
    except SmaltiError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert not isinstance(error, InvalidInputError) or error.field.startswith("parameters.")  # noqa: PT017
    else:
        assert job.prompt.strip()
        assert "\0" not in job.prompt
