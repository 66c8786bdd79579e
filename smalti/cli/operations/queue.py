"""`smalti queue dead`: looking at messages that were given up, sending them again, and dropping them."""

import json
import re
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smalti.cli.operations.tables import print_table
from smalti.errors import InvalidInputError, MalformedMessageError

if TYPE_CHECKING:
    from smalti.messages import Stage
    from smalti.queue import DeadLetter, HeldLetter, LetterFilter

LEFT_SOME: Final = 1
"""Exit status when a letter that was meant was not found, or could not be sent again."""
MAX_WHY_LENGTH: Final = 80
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE: Final = re.compile(r"(\d{1,9})([smhd])")

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Letters, by the ids that `list` prints.")
]
Queues = Annotated[
    list[str] | None, typer.Option("--queue", help="Letters of a stage: encode, generate, ..., or events.")
]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Why they died: poison, exhausted, unreadable, broker, ...")
]
Job = Annotated[str, typer.Option(help="Letters of a job.")]
Older = Annotated[
    str | None, typer.Option(metavar="AGE", help="Dead for at least so long: 30s, 10m, 2h, 3d.")
]
Newer = Annotated[str | None, typer.Option(metavar="AGE", help="Dead for at most so long.")]
Old = Annotated[
    bool, typer.Option("--old", help="Look also into the queues of version 0.1, whose messages nobody reads.")
]
All = Annotated[bool, typer.Option("--all", help="All letters; needed if nothing else says which.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    queue = typer.Typer(help="The queues of the broker that `SMALTI_BROKER_URL` names.", no_args_is_help=True)
    dead = typer.Typer(help="Dead letters: messages that were given up.", no_args_is_help=True)
    for command in (list_, show, replay, drop):
        dead.command(command.__name__.rstrip("_"))(command)
    queue.add_typer(dead, name="dead")
    app.add_typer(queue, name="queue")


def list_(
    queue: Queues = None,
    kind: Kinds = None,
    job: Job = "",
    older: Older = None,
    newer: Newer = None,
    old: Old = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the oldest of each queue first."""
    chosen = _chosen(None, queue, kind, job, older, newer)
    with closing(_find(chosen, old)) as found:
        rows = [_fields(held.letter) for held in found]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("There are no dead letters." if chosen.is_empty else "There are no such dead letters.")
        return
    cells = (
        (
            *(str(row[name] or "") for name in ("id", "queue", "died", "kind", "job")),
            row["why"][:MAX_WHY_LENGTH] + (" (its job has expired)" if row["expired"] else ""),
        )
        for row in rows
    )
    print_table(("id", "queue", "died", "kind", "job", "why"), cells)


def show(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Letters, by the ids that `list` prints.")
    ],
    old: Old = False,
) -> None:
    """Print dead letters in whole, as JSON: what they say, their headers, and why they died."""
    from smalti.queue import LetterFilter

    with closing(_find(LetterFilter(ids=frozenset(ids)), old)) as found:
        letters = [held.letter for held in found]
    print(json.dumps([_everything(letter) for letter in letters], indent=2, default=str, ensure_ascii=False))
    _end(ids, {letter.id for letter in letters})


def replay(
    ids: Ids = None,
    queue: Queues = None,
    kind: Kinds = None,
    job: Job = "",
    older: Older = None,
    newer: Newer = None,
    old: Old = False,
    every: All = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to their queues again, unchanged and with the signatures that they have.

    A letter leaves the dead-letter queue when the broker has confirmed it in the other one. If this command is killed
    in between, it is in both: a message may be handled twice, which is harmless, and is never lost.
    """
    from smalti.queue import BrokerPublisher, DeadLetters, broker_settings

    chosen = _chosen(ids, queue, kind, job, older, newer, every=every)
    letters, publisher = DeadLetters(broker_settings()), BrokerPublisher()
    sent: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    with closing(publisher), closing(letters.find(chosen, old=old)) as found:
        for held in found:
            try:
                letters.replay(held, publisher)
            except MalformedMessageError as error:
                left.append(_fields(held.letter) | {"problem": str(error)})
            else:
                sent.append(_fields(held.letter))
    if as_json:
        print(json.dumps({"sent": sent, "left": left}, indent=2))
    else:
        for each in left:
            print(f"{each['id']} stays in {each['queue']}: {each['problem']}")
        expired = sum(each["expired"] for each in sent)
        note = (
            f"; {expired} of them have expired, which is all that the services will report" if expired else ""
        )
        print(f"sent again: {len(sent)}{note}")
    _end(ids, {each["id"] for each in (*sent, *left)}, failed=bool(left))


def drop(
    ids: Ids = None,
    queue: Queues = None,
    kind: Kinds = None,
    job: Job = "",
    older: Older = None,
    newer: Newer = None,
    every: All = False,
    as_json: AsJson = False,
) -> None:
    """Drop dead letters for good. With --json, each is printed in whole before it is dropped, one in a line."""
    chosen = _chosen(ids, queue, kind, job, older, newer, every=every)
    dropped: set[str] = set()
    count = 0
    with closing(_find(chosen, False)) as found:
        for held in found:
            if as_json:
                print(json.dumps(_everything(held.letter), default=str), flush=True)
            held.remove()
            dropped.add(held.letter.id)
            count += 1
    if not as_json:
        print(f"dropped: {count}")
    _end(ids, dropped)


def _find(chosen: "LetterFilter", old: bool) -> "Generator[HeldLetter, None, None]":
    from smalti.queue import (  # Only where it is needed: Celery takes long to load.
        DeadLetters,
        broker_settings,
    )

    return DeadLetters(broker_settings()).find(chosen, old=old)


def _chosen(
    ids: list[str] | None,
    queues: list[str] | None,
    kinds: list[str] | None,
    job: str,
    older: str | None,
    newer: str | None,
    *,
    every: bool | None = None,
) -> "LetterFilter":
    """Returns which letters are meant.

    Args:
        ids: their ids.
        queues: names of stages, or of dead-letter queues.
        kinds: why they died.
        job: their job.
        older: minimum age.
        newer: maximum age.
        every: whether all are meant if nothing else is given; None if that needs no word.

    Raises:
        InvalidInputError: an option is invalid, or nothing says which letters are meant.
    """
    from smalti.queue import LetterFilter

    chosen = LetterFilter(
        ids=frozenset(ids or ()),
        stages=frozenset(map(_stage, queues or ())),
        kinds=frozenset(kinds or ()),
        job=job,
        older=_seconds("--older", older),
        newer=_seconds("--newer", newer),
    )
    if every is not None and chosen.is_empty and not every:
        raise InvalidInputError(
            "ID", "say which letters: ids, --queue, --kind, --job, --older, --newer, or --all"
        )
    return chosen


def _stage(name: str) -> "Stage":
    from smalti.messages import QUEUE_PREFIX, Stage

    try:
        return Stage(name.removeprefix(QUEUE_PREFIX).removesuffix(".dead"))
    except ValueError:
        raise InvalidInputError("--queue", f"must be one of {', '.join(Stage)}, got {name[:60]!r}") from None


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    found = _AGE.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            option, f"must be a number with a unit, such as 30s, 10m, 2h or 3d, got {text[:60]!r}"
        )
    return float(found[1]) * _UNITS[found[2]]


def _fields(letter: "DeadLetter") -> dict[str, Any]:
    """Returns what `list` says of a letter."""
    died = (
        None
        if letter.died is None
        else datetime.fromtimestamp(letter.died, UTC).isoformat(timespec="seconds")
    )
    return {
        "id": letter.id,
        "queue": letter.queue,
        "origin": letter.origin,
        "died": died,
        "kind": letter.kind,
        "why": " ".join(letter.why.split()),
        "job": letter.job,
        "expired": letter.expired,
        "signed": letter.signed,
    }


def _everything(letter: "DeadLetter") -> dict[str, Any]:
    """Returns what `show` says of a letter."""
    readable = json.loads(letter.text) if letter.message is not None and letter.text is not None else None
    return _fields(letter) | {
        "message": readable,
        "headers": dict(letter.raw.headers),
        "content_type": letter.raw.content_type,
        "body": letter.raw.body.decode(errors="backslashreplace"),
    }


def _end(ids: list[str] | None, found: set[str], *, failed: bool = False) -> None:
    """Names the letters that were asked for and are not there; ends with status 1 if there are any, or one failed."""
    missing = [each for each in ids or () if each not in found]
    for each in missing:
        typer.echo(f"smalti: there is no dead letter {each}", err=True)
    if missing or failed:
        raise typer.Exit(LEFT_SOME)
