"""What the calls say of several models and revisions, and what they do with them."""

from typing import Any

import pytest

from harness.fleet import another_card, card_of, say_goodbye, say_hello
from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import (
    Change,
    create_job,
    finished_job,
    get_job,
    image_tokens,
    initial_image,
    parameters,
    served,
)
from harness.grpc_server import asynchronous
from harness.service import answer
from smalti.errors import ModelMismatchError, ModelNotFoundError, NotSupportedError, UnavailableError
from smalti.messages import Stage
from smalti.services.gateway.database.connection import Database
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.model_pb2 import Model, ModelReference


@pytest.fixture
def database(sqlite: Database) -> Database:
    """Calls behave alike on every database."""
    return sqlite


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> GatewayHarness:
    return make_gateway(write=3)


def both(*changes: Change) -> Change:
    """Returns a change that makes several."""

    def change(request: image_pb2.CreateImagesRequest) -> None:
        for each in changes:
            each(request)

    return change


async def models(stub: Any) -> list[Model]:
    return list((await answer(stub.ListModels(image_pb2.ListModelsRequest()))).models)


async def model(stub: Any, **reference: Any) -> Model:
    found: Model = (
        await answer(stub.GetModel(image_pb2.GetModelRequest(model=ModelReference(**reference))))
    ).model
    return found


@asynchronous
async def test_lists_say_what_can_be_drawn_now(gateway: GatewayHarness) -> None:
    own = card_of(gateway)
    one, two = another_card(own, "1"), another_card(own, "2")
    other = another_card(own, "3", name="other", default_n=2)
    async with served(gateway) as stub:
        (silent,) = await models(stub)
        assert (silent.reference.name, silent.slots, silent.default, silent.available) == (
            own.name,
            0,
            True,
            True,
        )
        say_hello(gateway, one, slots=4)
        say_hello(gateway, two, other)
        found = {each.reference.revision[-1]: each for each in await models(stub)}
        assert {key: (each.reference.name, each.slots, each.default) for key, each in found.items()} == {
            "1": (own.name, 4, True),
            "2": (own.name, 8, True),
            "3": ("other", 8, False),
        }
        assert all(
            each.available and each.limits.candidates and not each.vocabulary.groups
            for each in found.values()
        )
        assert (await model(stub)).reference.revision == two.revision
        assert (await model(stub, name="other")).default_n == 2
        say_goodbye(gateway, other)
        assert [each.reference.name for each in await models(stub)] == [own.name] * 2
        assert (await model(stub, name="other")).available is False


@asynchronous
async def test_jobs_get_the_asked_model_and_its_defaults(gateway: GatewayHarness) -> None:
    own = card_of(gateway)
    other = another_card(own, "3", name="other", default_n=2, default_vary=True)
    say_hello(gateway, other)
    async with served(gateway) as stub:
        job = await create_job(
            stub,
            both(
                lambda request: request.parameters.ClearField("n"),
                parameters(model=ModelReference(name="other")),
            ),
        )
        assert (job.parameters.model.revision, job.parameters.n, job.parameters.vary) == (
            other.revision,
            2,
            True,
        )
        with pytest.raises(ModelNotFoundError, match=f"can draw with {own.name}, other"):
            await create_job(stub, parameters(model=ModelReference(name="nothing")))
        say_goodbye(gateway, other)
        with pytest.raises(UnavailableError, match="other has no workers now") as error:
            await create_job(stub, parameters(model=ModelReference(name="other")))
        assert error.value.retry_after
        pinned = await create_job(
            stub, parameters(model=ModelReference(name="other", revision=other.revision))
        )
        assert pinned.state == job_pb2.JOB_STATE_QUEUED
        gateway.clock.advance(3601)
        gateway.gateway.look_at_models()
        with pytest.raises(ModelNotFoundError):
            await create_job(stub, parameters(model=ModelReference(name="other", revision=other.revision)))


@asynchronous
async def test_pictures_of_earlier_jobs_go_to_a_revision_with_their_vqgan(gateway: GatewayHarness) -> None:
    own = card_of(gateway)
    one, two = another_card(own, "1"), another_card(own, "2", shares_pictures=False)
    say_hello(gateway, one)
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway)
        assert job.parameters.model.revision == one.revision
        say_hello(gateway, two)
        picture = job_pb2.PictureReference(job_id=job.id, candidate=job.pictures[0].candidate)
        keep = initial_image(picture=picture, keep_rows=1)
        found = [(await create_job(stub, keep)).parameters.model.revision for _ in range(3)]
        assert found == [one.revision] * 3
        pin = parameters(model=ModelReference(revision=two.revision))
        with pytest.raises(ModelMismatchError, match="same VQGAN"):
            await create_job(stub, both(keep, pin))
        # Tokens say nothing of their model.
        assert (await create_job(stub, both(initial_image(tokens=image_tokens(16), keep_rows=1), pin))).id


@asynchronous
async def test_refiners_and_decoders_that_say_hello_are_used(gateway: GatewayHarness) -> None:
    own = card_of(gateway)
    one = another_card(own, "1", encodes_images=True)
    say_hello(gateway, one)
    asked = []

    def connect(address: str) -> Any:
        asked.append(address)
        return object()

    async with served(gateway, connect=connect) as stub:
        assert not (await model(stub)).encodes_images
        with pytest.raises(NotSupportedError, match="no refiner"):
            await create_job(stub, parameters(upscale=2))
        say_hello(gateway, one, stages=[Stage.DECODE, Stage.REFINE], worker="new", address="decoder:1")
        found = await model(stub)
        assert (found.encodes_images, found.enlarges) == (True, True)
        assert asked == ["decoder:1"]
        assert (
            await get_job(stub, (await create_job(stub, parameters(upscale=2))).id)
        ).parameters.upscale == 2
