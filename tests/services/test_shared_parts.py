"""Models that share files: a worker serves all of them by the key of the files, and leaves other work to others."""

from collections.abc import Iterator
from typing import Any

import pytest

from harness.queue import task
from harness.stages import RealStages
from smalti.errors import InvalidInputError
from smalti.messages import Adapter, Chunk, EncodeTask, Stage, StageDone
from smalti.pictures import read_drawing
from smalti.queue import HoldBackError
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys

OTHER = {"model": "other", "revision": f"sha256:{'0' * 64}"}


@pytest.fixture(autouse=True)
def _empty(stages: RealStages) -> Iterator[None]:
    yield
    for info in list(stages.store.objects("jobs/")):
        stages.store.delete(info.key)


def encode_task(folder: ModelFolder, job: str, **changes: Any) -> EncodeTask:
    named = {"model": folder.name, "revision": folder.revision, "sampling": folder.sampling}
    chunks = (Chunk(chunk=0, candidates=(0, 1)),)
    fields = {**task(job).model_dump(), "prompt": "a red cat", "version": 3, **named, "chunks": chunks}
    return EncodeTask(**{**fields, **changes})


def test_pictures_of_another_model_with_the_same_parts_are_the_same(
    stages: RealStages, worded: ModelFolder
) -> None:
    """The keys decide, not the name; the pictures say the model that was asked for."""
    keys = route_keys(worded)
    own = stages.run(encode_task(worded, "own", routes=keys, vary=True))
    other = stages.run(encode_task(worded, "other", routes=keys, vary=True, **OTHER))
    assert [type(event) for event in own] == [type(event) for event in other] == [StageDone] * 4
    drawings = []
    for job in ("own", "other"):
        files = [content for name, content in stages.objects(job).items() if name.startswith("candidates/")]
        drawings.append([(image.tobytes(), drawing) for image, drawing in map(read_drawing, files)])
    assert len(drawings[0]) == 2
    assert [pixels for pixels, _ in drawings[0]] == [pixels for pixels, _ in drawings[1]]
    assert {drawing.model for _, drawing in drawings[1]} == {"other"}
    own_name = {"model": worded.name, "revision": worded.revision}
    renamed = [drawing.model_copy(update=own_name) for _, drawing in drawings[1]]
    assert renamed == [drawing for _, drawing in drawings[0]]


@pytest.mark.parametrize("version", [2, 3])
def test_work_of_another_model_without_a_key_is_left_to_others(
    stages: RealStages, worded: ModelFolder, version: int
) -> None:
    with pytest.raises(HoldBackError, match="needs other sha256:0"):
        stages.run(encode_task(worded, "j", version=version, **OTHER))
    assert stages.objects("j") == {}


@pytest.mark.parametrize("stage", [Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK])
def test_work_of_another_key_is_left_to_others(stages: RealStages, worded: ModelFolder, stage: Stage) -> None:
    """Whatever it calls its model."""
    routes = route_keys(worded) | {stage: "0" * 12}
    with pytest.raises(HoldBackError, match="with the key 000000000000"):
        stages.run(encode_task(worded, "j", routes=routes))


def test_adapters_are_refused_in_one_line(stages: RealStages, worded: ModelFolder) -> None:
    adapter = Adapter(name="ink", sha256="0" * 64)
    with pytest.raises(InvalidInputError, match="adapters: are not supported"):
        stages.run(encode_task(worded, "j", adapters=(adapter,)))
