"""`smalti keys`: making, listing and revoking the keys with which callers say who they are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Column

from smalti.cli.operations.database import command_group, gateway_database, iso_time, open_audit, report
from smalti.cli.operations.tables import print_table
from smalti.errors import InvalidInputError

if TYPE_CHECKING:
    from smalti.services.gateway.database.tables import ApiKey
    from smalti.services.gateway.identity import KeyRepository

NOT_FOUND: Final = 1
"""Exit status when a key that was meant was not found."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    about = "The keys of callers, in the database that `SMALTI_GATEWAY_DATABASE` names."
    app.add_typer(command_group(about, create, list_, revoke), name="keys")


def create(
    tenant: Annotated[str, typer.Option(help="Tenant to which the key belongs.")] = "default",
    roles: Annotated[
        list[str] | None,
        typer.Option(
            "--role", help="What it may do: draw, batch, admin, or web. May be repeated.  [default: draw]"
        ),
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for, for the list.")] = "",
    new_tenant: Annotated[
        bool, typer.Option("--new-tenant", help="Make the tenant if there is none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it. This is the only time that it is shown; the database keeps its SHA-256."""
    from smalti.services.gateway.identity import Role

    chosen = []
    for each in roles or [Role.DRAW]:
        if each not in list(Role):
            raise InvalidInputError("--role", f"must be one of {', '.join(Role)}, got {each[:60]!r}")
        chosen.append(Role(each))
    open_audit()
    with _repository() as keys:
        try:
            key, kept = keys.create(tenant, chosen, note=note, new_tenant=new_tenant)
        except InvalidInputError as error:
            raise InvalidInputError(f"--{error.field.removesuffix('s')}", error.problem) from None
    _report("key created", kept)
    if as_json:
        print(json.dumps({"key": key, **_fields(kept)}, indent=2))
        return
    print(key)
    typer.echo(
        f"smalti: {kept.id} of {kept.tenant} may {kept.roles.replace(',', ', ')}; keep the key", err=True
    )


def list_(
    tenant: Annotated[str | None, typer.Option(help="Keys of a tenant alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, without the keys themselves, the oldest first."""
    with _repository() as keys:
        rows = [_fields(kept) for kept in keys.list(tenant)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("There are no keys." if tenant is None else f"{tenant} has no keys.")
        return
    # Without its id, nobody can revoke a key.
    first = Column("id", no_wrap=True, min_width=len(rows[0]["id"]))
    cells = (
        (
            row["id"],
            row["tenant"],
            ", ".join(row["roles"]),
            row["created"][:10],
            row["last_used"] or "never",
            (row["revoked"] or "")[:10],
            row["note"],
        )
        for row in rows
    )
    print_table((first, "tenant", "roles", "created", "last used", "revoked", "note"), cells)


def revoke(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Keys, by the ids that `list` prints.")],
) -> None:
    """Revoke keys for good. Gateways refuse them within five seconds."""
    missing = False
    open_audit()
    with _repository() as keys:
        for each in ids:
            kept = keys.revoke(each)
            if kept is None:
                missing = True
                typer.echo(f"smalti: there is no key {each[:60]}", err=True)
            elif kept.revoked is not None:
                print(f"{kept.id} of {kept.tenant} was revoked on {iso_time(kept.revoked)[:10]}")
            else:
                _report("key revoked", kept)
                print(f"{kept.id} of {kept.tenant} is revoked")
    if missing:
        raise typer.Exit(NOT_FOUND)


@contextmanager
def _repository() -> "Iterator[KeyRepository]":
    """Opens the database; it must have the tables already.

    Raises:
        InvalidInputError: it cannot be used, or has no tables.
        DatabaseUnavailableError: it does not answer.
    """
    # Only where it is needed: SQLAlchemy takes long to load.
    from smalti.services.gateway.identity import KeyRepository

    with gateway_database("keys") as database:
        yield KeyRepository(database, database.time)


def _report(event: str, kept: "ApiKey") -> None:
    report(event, key=kept.id, tenant=kept.tenant, roles=kept.roles.split(","))


def _fields(kept: "ApiKey") -> dict[str, Any]:
    return {
        "id": kept.id,
        "tenant": kept.tenant,
        "roles": kept.roles.split(","),
        "note": kept.note,
        "created": iso_time(kept.created),
        "last_used": None if kept.last_used is None else iso_time(kept.last_used)[:10],
        "revoked": None if kept.revoked is None else iso_time(kept.revoked),
    }
