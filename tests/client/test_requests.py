"""The arguments of a job become a request, and wrong ones are named."""

from pathlib import Path
from typing import Any

import pytest

from harness.clients import AnyClient
from harness.image_service import ServedGateway
from smalti.errors import InvalidInputError, RequestIdReusedError
from smalti.v1.job_pb2 import PictureReference
from smalti.v1.sampling_pb2 import PRIORITY_BATCH
from smalti.v1.tokens_pb2 import ImageTokens


def test_every_option_arrives(client: AnyClient, served: ServedGateway) -> None:
    tokens = ImageTokens(tokens=[1, 2, 3])
    job = client.create(
        "a fox", n=0, candidates=4, first_candidate=16, seed=0, guidance_scale=0, temperature=0.5, top_k=0,
        top_p=0.9, model="wire", revision="sha256:1", initial_image=tokens, keep_rows=2, priority="batch",
        time_limit=1.5, retention=60, labels={"a": "b"}, request_id="theirs",
    )  # fmt: skip
    (request,) = served.gateway.calls["CreateImages"]
    parameters = request.parameters
    assert job.id == "job-0"
    assert (parameters.prompt, parameters.n, parameters.candidates) == ("a fox", 0, 4)
    # A value of 0 is sent, unlike one that is left out.
    assert all(parameters.HasField(name) for name in ("n", "seed", "first_candidate"))
    sampling = parameters.sampling
    assert (sampling.guidance_scale, sampling.temperature, sampling.top_k, sampling.top_p) == (0, 0.5, 0, 0.9)
    assert sampling.HasField("top_k")
    assert (parameters.model.name, parameters.model.revision) == ("wire", "sha256:1")
    assert (parameters.initial_image.tokens, parameters.initial_image.keep_rows) == (tokens, 2)
    assert (request.priority, dict(request.labels), request.request_id) == (
        PRIORITY_BATCH, {"a": "b"}, "theirs",
    )  # fmt: skip
    assert (request.time_limit.ToMilliseconds(), request.retention.seconds) == (1500, 60)


def test_options_that_are_left_out_stay_unset(client: AnyClient, served: ServedGateway) -> None:
    client.create("a fox", n=None, labels=None)
    (request,) = served.gateway.calls["CreateImages"]
    assert [field.name for field, _ in request.ListFields()] == ["request_id", "parameters"]
    assert [field.name for field, _ in request.parameters.ListFields()] == ["prompt"]


def test_initial_image_is_a_file_its_content_or_a_picture_of_a_job(
    client: AnyClient, served: ServedGateway, tmp_path: Path
) -> None:
    (tmp_path / "fox.png").write_bytes(b"content")
    reference = PictureReference(job_id="job-0", candidate=3)
    for image in (tmp_path / "fox.png", b"content", reference):
        client.create("a fox", initial_image=image, keep_rows=1)
    asked = [call.parameters.initial_image for call in served.gateway.calls["CreateImages"]]
    assert [image.image for image in asked] == [b"content", b"content", b""]
    assert asked[2].picture == reference
    for wrong in (tmp_path / "none.png", 7):
        with pytest.raises(InvalidInputError, match=r"^initial_image: "):
            client.create("a fox", initial_image=wrong)


def test_part_of_an_initial_image_is_kept(client: AnyClient, served: ServedGateway, tmp_path: Path) -> None:
    (tmp_path / "hole.png").write_bytes(b"mask")
    ways: tuple[dict[str, Any], ...] = (
        {"mask": tmp_path / "hole.png"}, {"mask": b"mask"}, {"redrawn_tiles": [0, 7]}, {"strength": 0.25},
    )  # fmt: skip
    for way in ways:
        client.create("a fox", initial_image=b"content", **way)
    asked = [call.parameters.initial_image for call in served.gateway.calls["CreateImages"]]
    assert [image.mask for image in asked] == [b"mask", b"mask", b"", b""]
    assert list(asked[2].redrawn_tiles) == [0, 7]
    assert [image.strength for image in asked if image.HasField("strength")] == [0.25]
    for wrong in (tmp_path / "none.png", 7, b""):
        with pytest.raises(InvalidInputError, match=r"^mask: "):
            client.create("a fox", initial_image=b"content", mask=wrong)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"seed": 2**64}, "seed"),
        ({"n": "many"}, "n"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"time_limit": "long"}, "time_limit"),
        ({"labels": {"a": 1}}, "labels"),
        ({"priority": "high"}, "priority"),
        ({"top_p": 7.0}, "top_p"),  # The server checks ranges.
    ],
)
def test_bad_input_names_the_argument(client: AnyClient, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        client.create(**{"prompt": "a fox", **asked})
    assert caught.value.field == field


def test_errors_name_arguments_instead_of_fields_of_the_contract(
    client: AnyClient, served: ServedGateway
) -> None:
    for field, name in (
        ("parameters.model.name", "model"),
        ("parameters.initial_image.image", "initial_image"),
        ("parameters.initial_image.keep_rows", "keep_rows"),
        ("parameters.initial_image.mask", "mask"),
        ("parameters.prompt", "prompt"),
        ("time_limit", "time_limit"),
    ):
        served.gateway.failures["CreateImages"].append(InvalidInputError(field, "is wrong"))
        with pytest.raises(InvalidInputError, match=f"^{name}: is wrong$"):
            client.create("a fox")


def test_unknown_argument_is_a_type_error(client: AnyClient) -> None:
    with pytest.raises(TypeError, match="'steps'"):
        client.create("a fox", steps=3)


def test_every_job_has_its_own_request_id(client: AnyClient, served: ServedGateway) -> None:
    client.create("a fox")
    client.create("a fox")
    first, second = (call.request_id for call in served.gateway.calls["CreateImages"])
    assert len(first) == 36
    assert first != second


def test_request_id_of_the_user_returns_the_same_job(client: AnyClient) -> None:
    assert client.create("a fox", request_id="mine").id == client.create("a fox", request_id="mine").id
    with pytest.raises(RequestIdReusedError) as caught:
        client.create("a cat", request_id="mine")
    assert caught.value.name == "job-0"
