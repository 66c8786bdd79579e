"""The encoder rewrites the prompt once for a job, and the other stages use its result."""

import io

import pytest
from PIL import Image

from harness.queue import task
from harness.stages import RealStages
from smalti.messages import Chunk, EncodeTask, StageDone
from smalti.registry.folder import ModelFolder
from smalti.text.rewording import Rewriter

PROMPT = "a red zeppelin"
CHUNKS = tuple(Chunk(chunk=chunk, candidates=tuple(range(4 * chunk, 4 * chunk + 4))) for chunk in range(4))


@pytest.fixture
def asked(worded: ModelFolder, stages: RealStages) -> EncodeTask:
    """A job of 16 candidates in four chunks; its prompt has a word that the model does not know."""
    stages.rewriter.prompts.clear()
    return task("rewritten", PROMPT, model=worded, chunks=CHUNKS)


def test_prompt_is_rewritten_once_for_a_job(stages: RealStages, asked: EncodeTask) -> None:
    events = stages.run(asked)
    assert len([event for event in events if isinstance(event, StageDone)]) == 1 + 3 * len(CHUNKS)
    assert stages.rewriter.prompts == [PROMPT]
    [reading] = [event.reading for event in events if isinstance(event, StageDone) and event.reading]
    assert reading.unknown == ("zeppelin",)
    assert reading.effective_prompt == Rewriter.load(stages.words_file)(PROMPT).prompt
    for index in range(16):
        with Image.open(io.BytesIO(stages.objects("rewritten")[f"candidates/{index}.png"])) as image:
            assert f'"drawn": "{reading.effective_prompt}"' in image.info["smalti"]
    # The existing objects do not contain the reading of the prompt, so the encoder rewrites it again.
    again = stages.run(asked)
    assert all(event.skipped for event in again if isinstance(event, StageDone))
    assert [event.reading for event in again if isinstance(event, StageDone) and event.reading] == [reading]
    assert stages.rewriter.prompts == [PROMPT] * 2


def test_tasks_of_version_1_write_the_same_objects(stages: RealStages, asked: EncodeTask) -> None:
    stages.run(asked)
    stages.rewriter.prompts.clear()
    old = asked.model_copy(update={"version": 1, "job": "old"})
    assert {event.version for event in stages.run(old)} == {1}
    assert stages.objects("old") == stages.objects("rewritten")
    # Once in the encoder, and once for each chunk in the decoder and the ranker.
    assert stages.rewriter.prompts == [PROMPT] * (1 + 2 * len(CHUNKS))
