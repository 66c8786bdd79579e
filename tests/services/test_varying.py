"""Candidates with wordings of their own: through the stages they are the same as in one process, in any chunks."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.objects import delete_named
from harness.queue import task
from harness.stages import RealStages
from smalti.messages import Chunk, EncodeTask, GenerateTask, StageDone
from smalti.pipeline import LocalPicture, Pipeline
from smalti.registry.folder import ModelFolder
from smalti.results import RankedPicture, ScoresFile, unpack_features
from smalti.selection import choose
from smalti.storage import JobKeys

PROMPT = "a red cat"
SEED = 7
CHUNKS = (Chunk(chunk=0, candidates=(0, 1, 2, 3, 4)), Chunk(chunk=1, candidates=(5, 6, 7)))


@pytest.fixture(scope="module")
def expected(one_process: Pipeline) -> list[LocalPicture]:
    """All candidates, drawn in one process."""
    return one_process.generate_candidates(
        PROMPT, range(8), seed=SEED, sampling=one_process.folder.sampling, total=8, vary=True
    )


def asked(model: ModelFolder, job: str, **changes: Any) -> EncodeTask:
    """Returns the task of a varied job."""
    fields = {"model": model, "seed": SEED, "chunks": CHUNKS, "candidates_in_job": 8, "vary": True}
    return task(job, PROMPT, **{**fields, **changes})


def record(content: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(content)) as image:
        return dict(json.loads(image.info["smalti"]))


def ranked(objects: dict[str, bytes]) -> list[RankedPicture]:
    """Returns the scores of all candidates of a varied job."""
    files = (ScoresFile.parse("", objects[f"scores/{chunk.chunk}.json"]) for chunk in CHUNKS)
    return [picture for file in files for picture in file.pictures]


def test_stages_give_the_pictures_of_the_pipeline(
    stages: RealStages, worded: ModelFolder, expected: list[LocalPicture]
) -> None:
    stages.run(asked(worded, "varied"))
    objects = stages.objects("varied")
    wordings = [picture.drawing.wording for picture in expected]
    assert len({picture.tokens.tobytes() for picture in expected}) == 8
    assert 1 < len(set(wordings)) < 8
    for picture, scored in zip(expected, ranked(objects), strict=True):
        content = objects[f"candidates/{picture.candidate}.png"]
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(picture.image))
        drawing = picture.drawing.model_copy(update={"score": None})
        assert record(content) == drawing.model_dump(exclude_none=True)
        assert scored.wording == picture.drawing.wording
        # By the prompt itself, not by the wording.
        assert scored.score == pytest.approx(picture.score, abs=1e-3)
        assert scored.features is None
        assert (picture.drawing.prompt, picture.drawing.drawn) == (PROMPT, None)
    encodings = {name for name in objects if name.startswith("encodings/")}
    keys = JobKeys("varied")
    assert encodings == {keys.encoding_of(each or "").removeprefix(keys.folder) for each in wordings}
    assert "encoding.safetensors" not in objects


def test_a_candidate_is_the_same_in_other_chunks_alone_and_in_other_company(
    stages: RealStages, worded: ModelFolder, one_process: Pipeline, expected: list[LocalPicture]
) -> None:
    stages.run(asked(worded, "varied"))
    whole = stages.objects("varied")
    others = tuple(
        Chunk(chunk=number, candidates=candidates) for number, candidates in enumerate([(6, 1), (5,), (0, 7)])
    )
    stages.run(asked(worded, "others", chunks=others))
    for index in (0, 1, 5, 6, 7):
        assert stages.objects("others")[f"candidates/{index}.png"] == whole[f"candidates/{index}.png"]
    (alone,) = one_process.generate_candidates(
        PROMPT, [5], seed=SEED, sampling=worded.sampling, total=8, vary=True
    )
    np.testing.assert_array_equal(alone.tokens, expected[5].tokens)
    assert alone.drawing.wording == expected[5].drawing.wording


def test_repeated_and_repaired_work_gives_the_same_objects(stages: RealStages, worded: ModelFolder) -> None:
    first = stages.messages(asked(worded, "again"))
    whole = stages.objects("again")
    again = stages.run(asked(worded, "again"))
    assert all(event.skipped for event in again if isinstance(event, StageDone))
    generate = next(message for message in first if isinstance(message, GenerateTask))
    keys = JobKeys("again")
    stages.store.delete(generate.encodings[1].key)
    delete_named(stages.store, keys.tokens(0), keys.scores(0))
    # The chunk goes back to the encoder, which makes the missing encoding again.
    repeated = stages.messages(generate)
    assert {message.attempt for message in repeated} == {1, 2}
    assert stages.objects("again") == whole
    delete_named(stages.store, keys.tokens(0), keys.scores(0))
    stages.store.put(generate.encodings[0].key, b"this is no encoding")
    stages.run(generate)
    assert stages.objects("again") == whole


@pytest.mark.parametrize("diversity", [0.3, 0.9])
def test_a_choice_over_chunks_is_the_choice_of_the_pipeline(
    stages: RealStages, worded: ModelFolder, one_process: Pipeline, diversity: float
) -> None:
    stages.run(asked(worded, "chosen", keep_features=True))
    scored = ranked(stages.objects("chosen"))
    features = unpack_features("", [picture.features for picture in scored])
    chosen = choose([picture.score for picture in scored], features, 5, diversity)
    pictures = one_process.generate(PROMPT, 5, 8, SEED, vary=True, diversity=diversity)
    assert [picture.candidate for picture in pictures] == [scored[index].index for index in chosen]
    assert pictures[0].score == max(picture.score for picture in pictures)


def test_without_vary_every_candidate_has_the_encoding_of_the_prompt(
    stages: RealStages, worded: ModelFolder, one_process: Pipeline
) -> None:
    stages.run(asked(worded, "plain", vary=False))
    objects = stages.objects("plain")
    assert not any(name.startswith("encodings/") for name in objects)
    assert not {"vary", "wording", "diversity"} & record(objects["candidates/0.png"]).keys()
    plain = one_process.generate(PROMPT, 1, 8, SEED)[0]
    assert plain.drawing.wording is None
