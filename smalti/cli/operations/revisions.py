"""`smalti revisions`: which revisions of models the gateways know, and which take no new jobs."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli.operations.database import command_group, gateway_database, iso_time, open_audit, report
from smalti.cli.operations.tables import print_table

if TYPE_CHECKING:
    from smalti.services.gateway.models import ListedRevision

SHORT_REVISION = len("sha256:") + 12

Digits = Annotated[
    str,
    typer.Argument(
        metavar="REVISION", help="A revision, or enough of its first digits, as `list` prints them."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    about = "The revisions of models, in the database that `SMALTI_GATEWAY_DATABASE` names."
    app.add_typer(command_group(about, list_, retire, restore), name="revisions")


def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the revisions that the gateways know, with their slots and their open jobs."""
    from smalti.services.gateway.database.clock import to_microseconds
    from smalti.services.gateway.models import list_revisions

    with gateway_database("revisions") as database:
        now = to_microseconds(database.time())
        with database.read() as session:
            found = [_fields(each) for each in list_revisions(session, now)]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("There are no revisions yet; a gateway adds its own when it starts.")
        return
    rows = (
        (
            each["model"],
            each["revision"][:SHORT_REVISION],
            str(each["slots"]),
            str(each["open_jobs"]),
            ", ".join(each["missing"]),
            f"retired {each['retired'][:10]}" if each["retired"] else "",
        )
        for each in found
    )
    print_table(("model", "revision", "slots", "open jobs", "without workers", ""), rows)


def retire(revision: Digits) -> None:
    """Give a revision no new jobs, unless they name it or nothing else can draw them. Its open jobs go on."""
    print(f"{_set_retired(revision, is_retired=True)} is retired")


def restore(revision: Digits) -> None:
    """Give a retired revision new jobs again."""
    print(f"{_set_retired(revision, is_retired=False)} is not retired")


def _set_retired(revision: str, *, is_retired: bool) -> str:
    from smalti.services.gateway import models
    from smalti.services.gateway.database.clock import to_microseconds

    open_audit()
    with gateway_database("revisions") as database:
        now = to_microseconds(database.time())
        with database.write() as session:
            found = models.retire(session, revision, now if is_retired else None)
    report("revision retired" if is_retired else "revision restored", revision=found)
    return found


def _fields(listed: "ListedRevision") -> dict[str, Any]:
    return {
        "model": listed.model,
        "revision": listed.revision,
        "slots": listed.slots,
        "missing": [stage.value for stage in listed.missing],
        "open_jobs": listed.open_jobs,
        "last_seen": iso_time(listed.last_seen),
        "retired": None if listed.retired is None else iso_time(listed.retired),
    }
