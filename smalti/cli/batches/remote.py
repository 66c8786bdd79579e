"""Batches at a gateway."""

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from smalti.cli.batches.inputs import Input, copied
from smalti.cli.batches.options import RunOptions
from smalti.cli.batches.progress import BatchProgress, batch_progress
from smalti.cli.extras import needs_extra
from smalti.entrance import signals

if TYPE_CHECKING:
    from smalti.client import Client
    from smalti.v1.batch_pb2 import Batch

_PREFIX: Final = "BATCH_STATE_"


@contextmanager
def connected(server: str | None) -> Iterator["Client"]:
    """Yields a client of a gateway; None for that of the environment."""
    with signals.at_once(), needs_extra("client"):
        from smalti.client import Client
    with Client(server) as client:
        yield client


def submit(
    client: "Client",
    options: RunOptions,
    source: Input,
    *,
    validate_only: bool = False,
    request_id: str = "",
    on_uploaded: Callable[[], None] = lambda: None,
) -> "Batch":
    """Uploads an input, creates a batch, and returns it as it was accepted.

    Args:
        client: the client.
        options: the options.
        source: the input.
        validate_only: whether the input is only checked.
        request_id: makes it safe to repeat; empty for a new one.
        on_uploaded: called before the batch is created.

    Raises:
        SmaltiError: the input cannot be read, or the gateway refuses.
    """
    request = options.request()
    request["validate_only"] = validate_only
    request["format"] = source.format.value
    if request_id:
        request["request_id"] = request_id
    with (
        tempfile.TemporaryDirectory(prefix="smalti-batch-") as folder,
        batch_progress(f"Sending {source.name}"),
    ):
        path = copied(source, Path(folder))
        file = client.files.upload(path)
        on_uploaded()
        return client.batches.create(file, wait=60.0, **request)


def say(batch_id: str) -> None:
    """Says on standard error which batch it is, so that it can be found after an interruption."""
    Console(stderr=True, highlight=False).print(f"batch {batch_id}", markup=False)


def watch(
    client: "Client", batch_id: str, *, stop: Callable[["Batch"], bool] = lambda batch: False
) -> "Batch":
    """Shows a batch until it has ended, and returns it.

    Args:
        client: the client.
        batch_id: the batch.
        stop: whether to return before the end.

    Raises:
        KeyboardInterrupt: the process was asked to end; the batch goes on.
    """
    with batch_progress("Waiting") as progress:
        for batch in _interruptible(client.batches.watch(batch_id)):
            _show(progress, batch)
            if stop(batch):
                return batch
    return batch


def state_of(batch: "Batch") -> str:
    """Returns the state of a batch in one word."""
    from smalti.v1.batch_pb2 import BatchState

    return BatchState.Name(batch.state).removeprefix(_PREFIX).lower()


def fields_of(batch: "Batch") -> dict[str, Any]:
    """Returns a batch as JSON, with the names of the contract."""
    from google.protobuf.json_format import MessageToDict

    fields: dict[str, Any] = MessageToDict(batch, preserving_proto_field_name=True)
    return {**fields, "state": state_of(batch)}


def _show(progress: BatchProgress, batch: "Batch") -> None:
    state, done = state_of(batch), batch.progress
    if state in ("planning", "finishing"):
        progress.show("Reading" if state == "planning" else "Writing the manifest", done.prompts)
        return
    left = done.time_left.ToSeconds() if done.HasField("time_left") else None
    said = batch.trouble or ("" if state == "running" else state)
    ended = done.prompts_drawn + done.prompts_failed + done.prompts_invalid
    progress.update(ended, done.prompts, per_second=done.prompts_per_second or None, left=left, state=said)


def _interruptible(batches: Generator["Batch", None, None]) -> Iterator["Batch"]:
    """Yields what a watch yields; a signal ends it, although the call waits for the gateway."""
    import queue
    import threading

    items: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            for batch in batches:
                items.put(batch)
            items.put(None)
        except BaseException as error:
            items.put(error)

    threading.Thread(target=read, name="watch", daemon=True).start()
    while True:
        signals.check()
        try:
            item = items.get(timeout=0.2)
        except queue.Empty:
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield item
