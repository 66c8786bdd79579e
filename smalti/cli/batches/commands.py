"""`smalti batch`: files of prompts to files of pictures, in this process or at a gateway."""

import dataclasses
import json
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from smalti.cli import drawing
from smalti.cli.batches import options
from smalti.cli.batches.options import RunOptions, takes_run_options
from smalti.cli.batches.progress import size_in_words, time_in_words
from smalti.cli.extras import needs_extra
from smalti.cli.operations.tables import print_table
from smalti.errors import InvalidInputError
from smalti.foreign_text import printable
from smalti.settings import settings

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from smalti.batches import OutputCounts
    from smalti.cli.batches.trial import Estimate
    from smalti.v1.batch_pb2 import Batch

MAX_REPORTED: Final = 100
"""Rows that cannot be used whose problems are printed."""

Server = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The gateway. [default: SMALTI_SERVER, or that of `smalti up`]"),
]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch, by the id that `submit` prints.")]
States = Annotated[
    list[str] | None, typer.Option("--state", help="Only batches in this state, such as running.")
]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Batches to list, the newest ones.")]


class _Group(TyperGroup):
    """A group whose command is `run` if the arguments begin with none of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = (*self.list_commands(ctx), *self.get_help_option_names(ctx))
        return super().parse_args(ctx, ["run", *args] if args and args[0] not in names else args)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    batch = typer.Typer(
        help="Files of prompts to files of pictures: `smalti batch FILE --out PLACE` is `smalti batch run`.",
        no_args_is_help=True,
        cls=_Group,
    )
    for command in (run, submit, list_, status, watch, pause, resume, cancel, delete, results):
        batch.command(command.__name__.rstrip("_"))(command)
    app.add_typer(batch, name="batch")


@takes_run_options
def run(
    given: RunOptions,
    *,
    out: options.Out = "",
    server: drawing.Server = None,
    dry_run: options.DryRun = False,
    as_json: drawing.AsJson = False,
) -> None:
    """Draw the prompts of FILE. Run again after an interruption, it goes on where it was."""
    if not out and not dry_run:
        raise InvalidInputError("out", "is missing; give --out with a folder, or s3://BUCKET/PREFIX")
    if address := server or settings().server:
        _run_remote(address, given, out, dry_run=dry_run, as_json=as_json)
    else:
        _run_local(given, out, dry_run=dry_run, as_json=as_json)


@takes_run_options
def submit(
    given: RunOptions,
    *,
    server: Server = None,
    name: options.Name = "",
    rank: options.Rank = None,
    as_json: drawing.AsJson = False,
) -> None:
    """Send the prompts of FILE to a gateway, print the batch's id, and do not wait."""
    from smalti.cli.batches import remote
    from smalti.cli.batches.inputs import open_input

    with remote.connected(server) as client:
        given = dataclasses.replace(given, name=name, rank=rank)
        with open_input(given.source, given.input_format) as source:
            batch = remote.submit(client, given, source)
        _print(batch, as_json) if as_json else print(batch.id)


def list_(
    server: Server = None, state: States = None, limit: Limit = 50, as_json: drawing.AsJson = False
) -> None:
    """List batches, newest first."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        found = list(islice(client.batches.list(states=state or (), page_size=min(limit, 1000)), limit))
    if as_json:
        print(json.dumps([remote.fields_of(batch) for batch in found], indent=2))
        return
    if not found:
        print("There are no batches." if not state else "There are no such batches.")
        return
    rows = (
        (batch.id, remote.state_of(batch), _share(batch), batch.name, _time(batch.create_time))
        for batch in found
    )
    print_table(("id", "state", "prompts", "name", "created"), rows)


def status(batch: BatchId, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Print how far a batch is."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        _print(client.batches.get(batch), as_json)


def watch(batch: BatchId, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Show a batch until it has ended; ends with an error unless it succeeds."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        ended = remote.watch(client, batch)
    _print(ended, as_json)
    _check_succeeded(ended)


def pause(batch: BatchId, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Begin no further shards of a batch."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        _print(client.batches.pause(batch), as_json)


def resume(batch: BatchId, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Go on with a batch that was paused."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        _print(client.batches.resume(batch), as_json)


def cancel(batch: BatchId, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Cancel a batch; what is drawn stays."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        _print(client.batches.cancel(batch), as_json)


def delete(batch: BatchId, server: Server = None) -> None:
    """Delete a batch and its files."""
    from smalti.cli.batches import remote

    with remote.connected(server) as client:
        client.batches.delete(batch)
    print(f"batch {batch} is deleted")


def results(batch: BatchId, out: options.Out, server: Server = None, as_json: drawing.AsJson = False) -> None:
    """Fetch the files of a batch; run again after an interruption, it goes on where it was."""
    from smalti.cli.batches import remote
    from smalti.cli.batches.results import fetch

    with remote.connected(server) as client:
        count = fetch(client, batch, out)
    print(json.dumps({"out": out, "files": count}) if as_json else f"{count} files: {printable(out)}")


def _run_local(given: RunOptions, out: str, *, dry_run: bool, as_json: bool) -> None:
    """Draws in this process."""
    with needs_extra("local"):
        from smalti.cli.batches import local, trial

    report = _Report()
    if dry_run:
        _print_estimate(trial.estimate(given, report.add), as_json)
        report.end()
        return
    outcome = local.run(given, out, report.add)
    report.end()
    summary = outcome.summary
    if as_json:
        fields = {"out": out, "state": summary.state, **summary.counts.model_dump()}
        print(json.dumps({**fields, "model": summary.model, "revisions": summary.revisions}))
        return
    if outcome.was_complete:
        print(f"{printable(out)} is complete already: {_counts(summary.counts)}")
    else:
        print(f"{_counts(summary.counts)}: {printable(out)}")


def _run_remote(server: str, given: RunOptions, out: str, *, dry_run: bool, as_json: bool) -> None:
    """Draws at a gateway."""
    from smalti.cli.batches import remote
    from smalti.cli.batches.inputs import open_input
    from smalti.cli.batches.results import run as run_at_gateway

    with remote.connected(server) as client:
        if not dry_run:
            ended = run_at_gateway(client, given, out)
            if ended is None:
                print(
                    json.dumps({"out": out, "state": "complete"}) if as_json else f"{out} is complete already"
                )
                return
        else:
            with open_input(given.source, given.input_format) as source:
                accepted = remote.submit(client, given, source, validate_only=True)
            ended = remote.watch(client, accepted.id)
            _check_succeeded(ended)
        _print(ended, as_json)


def _check_succeeded(batch: "Batch") -> None:
    from smalti.client import check_succeeded

    check_succeeded(batch)


class _Report:
    """Prints rows that cannot be used, the first ones; the rest is counted."""

    def __init__(self) -> None:
        self._count = 0
        self._console = Console(stderr=True, highlight=False)

    def add(self, problem: str) -> None:
        """Takes the problem of a row."""
        self._count += 1
        if self._count <= MAX_REPORTED:
            self._console.print(f"smalti: left out: {printable(problem)}", markup=False, soft_wrap=True)

    def end(self) -> None:
        """Says how many more there were."""
        if (more := self._count - MAX_REPORTED) > 0:
            self._console.print(f"smalti: left out: {more:,} more rows; the manifest has all", markup=False)


def _print_estimate(estimate: "Estimate", as_json: bool) -> None:
    if as_json:
        print(json.dumps(estimate.fields()))
        return
    counts = estimate.counts
    lines = {
        "prompts": f"{counts.prompts:,}"
        + (f", {counts.invalid:,} of them invalid" if counts.invalid else ""),
        "blank lines": f"{counts.blank:,}",
        "candidates": f"{counts.candidates:,}",
        "pictures": f"{counts.pictures:,}",
        "size": "unknown" if estimate.bytes is None else f"about {size_in_words(estimate.bytes)}",
        "time": "unknown"
        if estimate.seconds is None
        else f"about {time_in_words(estimate.seconds)} on this machine",
    }
    _print_lines(lines)


def _counts(counts: "OutputCounts") -> str:
    others = [f"{counts.failed:,} failed"] if counts.failed else []
    others += [f"{counts.invalid:,} invalid"] if counts.invalid else []
    drawn = f"{counts.drawn:,} of {counts.prompts:,} prompts drawn" + "".join(f", {each}" for each in others)
    return f"{drawn}, {counts.pictures:,} pictures, {size_in_words(counts.bytes)}"


def _print(batch: "Batch", as_json: bool) -> None:
    from smalti.cli.batches import remote

    if as_json:
        print(json.dumps(remote.fields_of(batch)))
        return
    done = batch.progress
    lines = {"batch": batch.id, "state": remote.state_of(batch), "prompts": _share(batch)}
    if batch.name:
        lines["name"] = batch.name
    if batch.trouble:
        lines["trouble"] = batch.trouble
    if done.prompts_failed:
        lines["failed"] = f"{done.prompts_failed:,}"
    if done.prompts_invalid:
        lines["invalid"] = f"{done.prompts_invalid:,}"
    if done.pictures:
        lines["pictures"] = f"{done.pictures:,}, {size_in_words(done.bytes)}"
    if batch.HasField("estimate"):
        lines["candidates"] = f"{batch.estimate.candidates:,}"
        if batch.validate_only:
            lines["pictures"] = f"{batch.estimate.pictures:,}"
            duration = batch.estimate.duration.ToSeconds() if batch.estimate.HasField("duration") else None
            lines["time"] = "unknown" if duration is None else f"about {time_in_words(duration)}"
    if done.HasField("time_left"):
        lines["time left"] = time_in_words(done.time_left.ToSeconds())
    _print_lines(lines)


def _print_lines(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        print(f"{name + ':':{width}}{printable(value)}")


def _share(batch: "Batch") -> str:
    return f"{batch.progress.prompts_drawn:,} of {batch.progress.prompts:,}"


def _time(time: "Timestamp") -> str:
    return time.ToDatetime().isoformat(sep=" ", timespec="seconds") if time.seconds else ""
