"""The ranker's calls, in this process."""

from collections.abc import Iterator

import numpy as np
import pytest

from harness.grpc_server import asynchronous
from harness.service import answer, called
from smalti.errors import InvalidInputError, ModelNotFoundError
from smalti.messages import Stage
from smalti.pictures import plain_png_bytes
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.rpc.tensors import to_array
from smalti.service.compute import ComputeThread
from smalti.service.model import model_reference
from smalti.services.ranker.servicer import RankerServicer
from smalti.v1.model_pb2 import ModelReference
from smalti.v1.ranker_pb2 import ScoreRequest
from smalti.v1.ranker_pb2_grpc import RankerServiceStub, add_RankerServiceServicer_to_server


@pytest.fixture
def servicer(tiny: ModelFolder, pipeline: Pipeline) -> Iterator[RankerServicer]:
    compute = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    yield RankerServicer(
        engine=pipeline.ranker,
        compute=compute,
        model=model_reference(tiny.name, tiny.revision),
        key=route_keys(tiny)[Stage.RANK],
    )
    compute.close()


@asynchronous
async def test_score_does_not_depend_on_the_other_pictures(
    servicer: RankerServicer, pipeline: Pipeline
) -> None:
    pictures = pipeline.generate_candidates(
        "a fox", range(20), seed=3, sampling=pipeline.folder.sampling, total=20
    )
    files = [plain_png_bytes(picture.image) for picture in pictures]
    async with called(lambda server: add_RankerServiceServicer_to_server(servicer, server)) as channel:
        stub = RankerServiceStub(channel)
        # More pictures than one batch holds.
        scores = (await answer(stub.Score(ScoreRequest(prompt="a fox", images=files)))).scores
        [alone] = (await answer(stub.Score(ScoreRequest(prompt="a fox", images=files[18:19])))).scores
        looked = await answer(
            stub.Score(ScoreRequest(prompt="a fox", images=[*files[:17], files[0]], include_features=True))
        )
    assert list(scores) == pytest.approx([picture.score for picture in pictures], abs=1e-4)
    assert alone == pytest.approx(scores[18], abs=1e-4)
    features = to_array(looked.features, "features", types=("float32",), axes=2)
    assert features.shape == (18, 16)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features[17], features[0], atol=1e-5)
    assert looked.scores == pytest.approx([*scores[:17], scores[0]], abs=1e-4)


@asynchronous
async def test_bad_requests_name_their_fields(servicer: RankerServicer, pipeline: Pipeline) -> None:
    [picture] = pipeline.generate_candidates("a fox", [0], seed=3, sampling=pipeline.folder.sampling, total=1)
    file = plain_png_bytes(picture.image)
    async with called(lambda server: add_RankerServiceServicer_to_server(servicer, server)) as channel:
        stub = RankerServiceStub(channel)
        for request, problem in (
            (ScoreRequest(images=[file]), "prompt: is empty"),
            (ScoreRequest(prompt="x" * 4001, images=[file]), "prompt: has 4001 characters"),
            (ScoreRequest(prompt="a fox"), "images: has 0 pictures; must have 1 to 64"),
            (ScoreRequest(prompt="a fox", images=[file] * 65), "images: has 65 pictures"),
            (ScoreRequest(prompt="a fox", images=[file, b"no"]), r"images\[1\]: must be a picture"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.Score(request))
        with pytest.raises(ModelNotFoundError):
            await answer(
                stub.Score(ScoreRequest(prompt="a", images=[file], model=ModelReference(name="mega")))
            )
