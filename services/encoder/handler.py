"""The stage that encodes prompts: `jobs/<job>/encoding.safetensors`."""

import time

from smalti.engines.encoder import EncoderEngine
from smalti.messages import EncodeTask, Message, Reading, Stage
from smalti.registry.folder import ModelFolder
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import encoding_bytes
from smalti.service.process import Process
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter

# What a message holds of a reading at most.
MAX_WORDS, MAX_WORD_LENGTH, MAX_NOTICE_LENGTH = 64, 200, 2000


class EncodeHandler(StageHandler[EncodeTask, None]):
    """Encodes, and lets the chunks be generated."""

    stage = Stage.ENCODE

    def __init__(
        self,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: EncoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Takes the engine, the thread that it computes in, and what says prompts in the model's words."""
        super().__init__(process, folder, cancellations)
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def outputs(self, task: EncodeTask) -> tuple[str, ...]:
        """See `StageHandler`."""
        return (task.keys.encoding,)

    def read(self, task: EncodeTask) -> None:
        """See `StageHandler`; all that an encoding needs is in the message."""

    def make(self, running: TaskContext[EncodeTask], content: None) -> StageOutput:
        """See `StageHandler`."""
        task = running.task
        prompt = self._rewriter(task.prompt).prompt
        running.reach("after-read")

        def encode() -> tuple[bytes, float]:
            running.check_begin()
            running.reach("engine-step")
            began = time.monotonic()
            encoding = self._engine.encode(prompt)
            return encoding_bytes(encoding), time.monotonic() - began

        file, seconds = self._compute.run(encode)
        running.check()
        running.reach("before-write")
        return StageOutput((self.store.put(task.keys.encoding, file),), seconds)

    def follow(self, task: EncodeTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`."""
        return task.next(objects[0])

    def reading(self, task: EncodeTask) -> Reading:
        """See `StageHandler`; found out anew where the encoding was there already, since it is not kept with it."""
        rewording = self._rewriter(task.prompt)
        return Reading(
            drawn=rewording.prompt,
            cut=self._engine.is_cut(rewording.prompt),
            unknown=_shortened(rewording.unknown),
            left_out=_shortened(rewording.left_out),
            notice=rewording.notice[:MAX_NOTICE_LENGTH],
        )


def _shortened(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word[:MAX_WORD_LENGTH] for word in words[:MAX_WORDS])
