"""Batches of OpenAI's Batch API: what their requests may ask for, and the files with the answers."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from smalti.batches import BatchKeys, InputFormat, PromptResult, ResultPart, StorePlace
from smalti.batches.openai import (
    ENDPOINTS,
    AnswerContext,
    OpenAIOptions,
    OpenAIReader,
    write_answers,
)
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.files import temporary_folder
from smalti.services.gateway.batches.spec import parameters_of
from smalti.services.gateway.database.clock import MICROSECONDS, to_seconds
from smalti.services.gateway.database.tables import Batch, BatchState
from smalti.services.gateway.files import NewFile, register_file
from smalti.services.gateway.jobs.context import GatewayContext

log = logging.getLogger(__name__)

PURPOSE: Final = "batch_output"


@dataclass(frozen=True)
class AnswerFiles:
    """The files with the answers, by their ids; None for one that would be empty."""

    output: str | None = None
    error: str | None = None


def openai_options(context: GatewayContext, batch: Batch) -> OpenAIOptions | None:
    """Returns what the requests of a batch may ask for; None if its input has another format."""
    if parameters_of(batch).input.format is not InputFormat.OPENAI:
        return None
    # The web service names a batch by the endpoint; otherwise it is that of the first request.
    endpoint = batch.name if batch.name in ENDPOINTS else None
    return OpenAIOptions(model=batch.model, size=_size(context, batch), endpoint=endpoint)


def store_answers(
    context: GatewayContext, batch: Batch, parts: Iterable[ResultPart], ending: BatchState
) -> AnswerFiles:
    """Writes the answers of a batch, and makes them files of its tenant; may be repeated.

    If its input or its pictures are gone, or have changed, there are no answers, and the log tells why.

    Args:
        context: the gateway.
        batch: the batch, whose manifest is written.
        parts: its results, in the order of their rows.
        ending: how it ends.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    options = openai_options(context, batch)
    if options is None:
        return AnswerFiles()
    try:
        return _store(context, batch, options, parts, ending)
    except (MissingObjectError, DamagedObjectError) as error:
        log.error("batch %s has no answers: %s", batch.id, error)
        return AnswerFiles()


def _store(
    context: GatewayContext,
    batch: Batch,
    options: OpenAIOptions,
    parts: Iterable[ResultPart],
    ending: BatchState,
) -> AnswerFiles:
    parameters = parameters_of(batch)
    place = StorePlace(context.store, BatchKeys(batch.id).prefix)
    about = AnswerContext(
        batch=batch.id,
        created=int(to_seconds(batch.created)),
        size=options.size,
        missing="batch_expired" if ending is BatchState.EXPIRED else "batch_cancelled",
    )
    with temporary_folder() as folder, ExitStack() as files:
        sha256 = (batch.cursor or {}).get("sha256") or parameters.input.sha256
        context.store.get_file(parameters.input.object_key, folder / "input", sha256=sha256)

        def opened(part: str, mode: str) -> BinaryIO:
            file: BinaryIO = files.enter_context((folder / part).open(mode))  # type: ignore[assignment]
            return file

        reader = OpenAIReader(opened("input", "rb"), options, parameters.defaults)
        counts = write_answers(
            reader.requests(),
            _results(parts),
            place.open,
            opened("output", "wb"),
            opened("error", "wb"),
            about,
        )
        files.close()
        return AnswerFiles(
            output=_registered(context, batch, folder / "output") if counts.completed else None,
            error=_registered(context, batch, folder / "error") if counts.failed else None,
        )


def _results(parts: Iterable[ResultPart]) -> Iterator[PromptResult]:
    for part in parts:
        yield from PromptResult.parse(part.range.name, part.load())


def _registered(context: GatewayContext, batch: Batch, path: Path) -> str:
    new = NewFile(
        tenant=batch.tenant,
        name=f"{batch.id}_{path.name}.jsonl",
        purpose=PURPOSE,
        retention=batch.retention / MICROSECONDS,
        id=f"{batch.id}-{path.name}",
    )
    return register_file(context, new, path)


def _size(context: GatewayContext, batch: Batch) -> str:
    card = context.catalogue.fleet.card(batch.revision).message
    return f"{card.image_width}x{card.image_height}"
