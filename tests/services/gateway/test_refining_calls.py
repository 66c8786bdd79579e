"""Asking for a second pass over gRPC: refused where nothing can do it, and repeatable where it is done."""

import pytest

from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import create_job, finished_job, served
from harness.grpc_server import asynchronous
from harness.objects import name_of
from harness.service import answer
from smalti.errors import InvalidInputError, ModelMismatchError, NotSupportedError
from smalti.registry.folder import ModelFolder
from smalti.services.gateway.database.connection import Database
from smalti.v1 import image_pb2
from smalti.v1.refiner_pb2 import Refinement


@pytest.fixture(scope="session")
def tiny(refining: ModelFolder) -> ModelFolder:
    """The tiny model with a refiner."""
    return refining


@pytest.fixture
def database(sqlite: Database) -> Database:
    """Calls behave alike on every database."""
    return sqlite


def refining_request(asked: image_pb2.CreateImagesRequest) -> None:
    asked.parameters.refine.strength = 0.25


@asynchronous
async def test_refined_job_has_all_parameters_that_are_needed_to_repeat_it(
    make_gateway: MakeGateway, tiny: ModelFolder
) -> None:
    gateway = make_gateway(refiner=True)
    async with served(gateway) as stub:
        model = (await answer(stub.GetModel(image_pb2.GetModelRequest()))).model
        assert (model.refiner.revision, model.refiner.upscale, model.enlarges) == (
            tiny.refiner_revision,
            2,
            True,
        )
        assert tiny.refiner_revision is not None
        job = await finished_job(stub, gateway, refining_request)
        assert job.parameters.refine == Refinement(strength=0.25, steps=4, revision=tiny.refiner_revision)
        assert job.parameters.upscale == 2
        assert (job.progress.pictures_to_refine, job.progress.pictures_refined) == (3, 3)
        assert {(picture.width, picture.height) for picture in job.pictures} == {(64, 64)}
        assert name_of(job.pictures[0].object_key).endswith("/refined/7.png")
        again = await finished_job(stub, gateway, lambda new: new.parameters.CopyFrom(job.parameters))
        assert again.parameters == job.parameters


@asynchronous
async def test_job_that_enlarges_has_no_refinement(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(refiner=True)
    async with served(gateway) as stub:

        def change(asked: image_pb2.CreateImagesRequest) -> None:
            asked.parameters.upscale = 4

        job = await finished_job(stub, gateway, change)
        assert job.parameters.upscale == 4
        assert not job.parameters.HasField("refine")
        plain = await finished_job(stub, gateway)
        assert not plain.parameters.HasField("upscale")


@asynchronous
async def test_second_pass_that_cannot_be_done_is_refused(
    gateway: GatewayHarness, make_gateway: MakeGateway
) -> None:
    def enlarging(factor: int) -> image_pb2.CreateImagesRequest:
        request = image_pb2.CreateImagesRequest()
        request.parameters.prompt, request.parameters.upscale = "a cat", factor
        return request

    async with served(gateway) as stub:
        model = (await answer(stub.GetModel(image_pb2.GetModelRequest()))).model
        assert not model.HasField("refiner")
        assert not model.enlarges
        with pytest.raises(NotSupportedError, match="this gateway has no refiner"):
            await create_job(stub, refining_request)
        with pytest.raises(NotSupportedError, match="this gateway has no refiner"):
            await answer(stub.CreateImages(enlarging(2)))
        await answer(stub.CreateImages(enlarging(1)))  # Asks for nothing.
    async with served(make_gateway(refiner=True)) as stub:
        with pytest.raises(InvalidInputError, match=r"parameters.upscale: must be 1, 2 or 4, not 3"):
            await answer(stub.CreateImages(enlarging(3)))
        for refine, field in ((Refinement(strength=1.5), "strength"), (Refinement(steps=65), "steps")):
            request = enlarging(2)
            request.parameters.refine.CopyFrom(refine)
            with pytest.raises(InvalidInputError, match=f"parameters.refine.{field}"):
                await answer(stub.CreateImages(request))
        request.parameters.refine.CopyFrom(Refinement(revision="sha256:0"))
        with pytest.raises(ModelMismatchError):
            await answer(stub.CreateImages(request))
