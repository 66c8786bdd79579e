"""The stage that refines chosen pictures: `jobs/<job>/refined/<index>-<content>.png`."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.engines.refiner import RefinerEngine, RefinerInput
from smalti.errors import DamagedObjectError, InvalidInputError
from smalti.messages import Message, PictureToRefine, RefineTask, Stage
from smalti.pictures import Drawing, png_bytes, read_drawing
from smalti.queue import HoldBackError
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import load_encoding, load_tokens_row
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef


@dataclass(frozen=True)
class ChosenPicture:
    """A chosen picture that earlier stages have written."""

    input: RefinerInput
    drawing: Drawing
    """The record in its file; the refined file repeats it."""


class RefineHandler(StageHandler[RefineTask, list[ChosenPicture]]):
    """Refines the chosen pictures of a job."""

    stage = Stage.REFINE

    def __init__(
        self,
        *,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: RefinerEngine,
        compute: ComputeThread,
    ) -> None:
        """Adds the refiner to what every stage needs.

        Args:
            process: provides the store, the publisher and the settings.
            spec: the loaded model and its sizes.
            cancellations: tells which jobs were cancelled; closed with the handler.
            engine: the refiner.
            compute: the thread in which the refiner runs.
        """
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine
        self._compute = compute

    def output_names(self, task: RefineTask) -> tuple[str, ...]:  # noqa: D102
        return tuple(task.keys.refined(each.candidate) for each in task.pictures)

    def load(self, task: RefineTask) -> list[ChosenPicture]:
        """Loads the pictures, and what the network needs to know of them.

        Raises:
            HoldBackError: the task needs another refiner.
            MissingObjectError: an input is missing.
            DamagedObjectError: an input is not what was written.
        """
        if task.refiner is not None and task.refiner != self._spec.refiner_revision:
            raise HoldBackError(
                f"the task needs the refiner {task.refiner}; "
                f"this service has loaded {self._spec.refiner_revision or 'none'}"
            )
        # Most pictures share the encoding of the prompt, so each encoding is loaded once.
        refs = {each.encoding.key: each.encoding for each in task.pictures if each.encoding is not None}
        encodings = {
            key: self.store_executor.submit(partial(load_encoding, self.store, ref, self._spec))
            for key, ref in refs.items()
        }
        return self.store_executor.map(partial(self._load_picture, encodings), task.pictures)

    def run(self, context: TaskContext[RefineTask], inputs: list[ChosenPicture]) -> StageOutput:
        """Refines the pictures in batches, and writes each batch while the next one is refined."""
        task = context.task
        context.reach("after-read")
        context.check_begin()
        return self.run_in_batches(
            context,
            self._compute,
            pictures=len(inputs),
            batch_size=self._engine.batch_size,
            run=lambda batch: self._engine.run(
                [each.input for each in inputs[batch]], task.second_pass, task.seed
            ),
            write=lambda position, pixels: self._write(task, inputs[position], pixels),
        )

    def next_tasks(
        self, context: TaskContext[RefineTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        """Returns nothing: the gateway learns from the event that the pictures are refined."""
        return ()

    def _load_picture(
        self, encodings: Mapping[str, Future[Encoding]], source: PictureToRefine
    ) -> ChosenPicture:
        """Loads a picture; `encodings` holds those of its task by key, which other threads load."""
        key = source.picture.key
        content = self.store.get(key, sha256=source.picture.sha256)
        try:
            image, drawing = read_drawing(content)
        except InvalidInputError as error:
            raise DamagedObjectError(key, error.problem) from None
        tokens = encoding = None
        if source.tokens is not None and source.encoding is not None:
            tokens = load_tokens_row(self.store, source.tokens, source.row, self._spec)
            encoding = encodings[source.encoding.key].result()
        return ChosenPicture(
            RefinerInput(
                pixels=np.asarray(image), candidate=source.candidate, tokens=tokens, encoding=encoding
            ),
            drawing,
        )

    def _write(
        self, task: RefineTask, chosen: ChosenPicture, pixels: UInt8[np.ndarray, "height width 3"]
    ) -> ObjectRef:
        """Writes the PNG of a refined picture with its record."""
        drawing = chosen.drawing.model_copy(update={"second_pass": task.second_pass, "refiner": task.refiner})
        key = task.keys.refined(chosen.input.candidate)
        content = png_bytes(Image.fromarray(pixels), drawing)
        return self.write(task, key, content, content_type="image/png")
