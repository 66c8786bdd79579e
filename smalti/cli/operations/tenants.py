"""`smalti tenants`: their weights and limits, what they have used, and their webhooks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smalti.cli.operations.database import command_group, gateway_database, iso_time, open_audit, report
from smalti.cli.operations.tables import print_table
from smalti.errors import InvalidInputError

if TYPE_CHECKING:
    from smalti.services.gateway.database.tables import Tenant
    from smalti.services.gateway.identity import TenantRepository
    from smalti.services.gateway.webhooks import WebhookRepository

NONE: Final = "none"
COLUMNS: Final = {
    "max_open_jobs": "open-jobs",
    "max_stored_jobs": "stored-jobs",
    "max_stored_bytes": "stored-bytes",
    "max_requests": "requests-per-minute",
    "max_candidates": "candidates-per-day",
    "max_batch_slots": "batch-slots",
    "max_prompt": "prompt-characters",
    "max_retention": "retention",
}
"""Options of limits by their columns."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]
Weight = Annotated[int | None, typer.Option(help="Its share when tenants take turns, 1 to 100.")]
OpenJobs = Annotated[str | None, typer.Option(metavar="N", help="Open jobs, or none for the setting.")]
StoredJobs = Annotated[str | None, typer.Option(metavar="N", help="Stored jobs.")]
StoredBytes = Annotated[str | None, typer.Option(metavar="N", help="Bytes of their requests.")]
Requests = Annotated[str | None, typer.Option(metavar="N", help="Jobs that it may create in a minute.")]
Candidates = Annotated[str | None, typer.Option(metavar="N", help="Candidates that it may ask for in a day.")]
BatchSlots = Annotated[
    str | None, typer.Option(metavar="N", help="Candidates of its batch jobs in the queues at a time.")
]
Prompt = Annotated[str | None, typer.Option(metavar="N", help="Characters of a prompt.")]
Retention = Annotated[str | None, typer.Option(metavar="N", help="Seconds for which a job may be kept.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    about = "The tenants in the database that `SMALTI_GATEWAY_DATABASE` names: limits, turns, webhooks."
    tenants = command_group(about, list_, create, set_, usage)
    about = "How a tenant is told that jobs have ended."
    tenants.add_typer(command_group(about, show_webhook, set_webhook, rotate_webhook), name="webhook")
    app.add_typer(tenants, name="tenants")


def list_(as_json: AsJson = False) -> None:
    """List the tenants with their limits and what they have; a limit that is not there is the setting's."""
    with _tenants() as repository:
        found = repository.list()
    _show([_fields(each) if as_json else _in_words(each) for each in found], as_json=as_json)


def create(
    tenant: Name,
    weight: Weight = None,
    open_jobs: OpenJobs = None,
    stored_jobs: StoredJobs = None,
    stored_bytes: StoredBytes = None,
    requests_per_minute: Requests = None,
    candidates_per_day: Candidates = None,
    batch_slots: BatchSlots = None,
    prompt_characters: Prompt = None,
    retention: Retention = None,
) -> None:
    """Make a tenant; limits that are left out are the settings'."""
    given = dict(locals())
    open_audit()
    with _tenants() as repository, _options():
        made = repository.create(tenant, weight=weight, limits=_limits(given))
    report("tenant created", tenant=tenant, **_set(made))
    print(f"{tenant} is made; give it a key with: smalti keys create --tenant {tenant}")


def set_(
    tenant: Name,
    weight: Weight = None,
    open_jobs: OpenJobs = None,
    stored_jobs: StoredJobs = None,
    stored_bytes: StoredBytes = None,
    requests_per_minute: Requests = None,
    candidates_per_day: Candidates = None,
    batch_slots: BatchSlots = None,
    prompt_characters: Prompt = None,
    retention: Retention = None,
) -> None:
    """Change a tenant. What is left out stays; `none` removes a limit, so that the setting's holds."""
    given = dict(locals())
    open_audit()
    with _tenants() as repository, _options():
        changed = repository.set(tenant, weight=weight, limits=_limits(given))
    report("tenant changed", tenant=tenant, **_set(changed))
    print(f"{tenant}: {_words(_set(changed))}")


def usage(
    days: Annotated[int, typer.Option(min=1, max=400, help="Days, with today.")] = 7, as_json: AsJson = False
) -> None:
    """List what tenants have asked for by day (UTC), the newest first."""
    with _tenants() as repository:
        rows = [
            {
                "day": iso_time(each.day)[:10],
                "tenant": each.tenant,
                "requests": each.requests,
                "candidates": each.candidates,
            }
            for each in repository.usage(days)
        ]
    _show(rows, as_json=as_json)


def show_webhook(tenant: Name, as_json: AsJson = False) -> None:
    """Show the webhook of a tenant, without its secret, and notices that wait."""
    with _webhooks() as webhooks:
        found = webhooks.find(tenant)
        number, oldest = webhooks.waiting(tenant, 10)
    if found is None:
        raise InvalidInputError(
            "TENANT", f"{tenant!r} has no webhook; make one with `smalti tenants webhook set`"
        )
    content = {
        "url": found.url,
        "include_prompt": found.include_prompt,
        "waiting": number,
        "oldest": [
            {"job": each.subject, "url": each.url, "tries": each.tries, "problem": each.problem}
            for each in oldest
        ],
    }
    if as_json:
        print(json.dumps(content, indent=2))
        return
    prompts = "with" if found.include_prompt else "without"
    print(f"{tenant} is told at {found.url or 'the URLs of its requests alone'}, {prompts} prompts.")
    print(f"{number} notices wait.")
    for each in oldest:
        print(f"  {each.subject} after {each.tries} tries: {each.problem or 'not tried yet'}")


def set_webhook(
    tenant: Name,
    url: Annotated[
        str | None, typer.Option(help="URL for jobs that name none; none if they are not to be told.")
    ] = None,
    include_prompt: Annotated[
        bool | None,
        typer.Option("--include-prompt/--no-include-prompt", help="Whether notices contain prompts."),
    ] = None,
) -> None:
    """Change the webhook of a tenant; the first time, make its secret and print it, the only time that it is shown."""
    from smalti.services.gateway.webhooks import check_url, host_of, webhook_settings

    is_none = url == NONE
    if url is not None and not is_none:
        check_url(url, "--url", private=webhook_settings().private)
    open_audit()
    with _webhooks() as webhooks, _options():
        found, secret = webhooks.set(
            tenant, url=None if is_none else url, no_url=is_none, include_prompt=include_prompt
        )
    # The rest of a URL may be a secret of the receiver's.
    host = host_of(found.url) if found.url else None
    report("webhook changed", tenant=tenant, host=host, include_prompt=found.include_prompt)
    if secret is not None:
        report("webhook secret created", tenant=tenant)
        print(secret)
        typer.echo("smalti: the receiver verifies notices with this secret; keep it", err=True)
    typer.echo(f"smalti: {tenant} is told at {found.url or 'the URLs of its requests alone'}", err=True)


def rotate_webhook(
    tenant: Name,
    keep: Annotated[
        float, typer.Option(min=0, max=720, help="Hours for which the secret before signs, too.")
    ] = 24.0,
) -> None:
    """Make a new secret, and print it. The one before signs too for a day, so that receivers can change."""
    open_audit()
    with _webhooks() as webhooks, _options():
        secret = webhooks.rotate(tenant, keep=3600 * keep)
    report("webhook secret rotated", tenant=tenant, keep_hours=keep)
    print(secret)
    typer.echo(f"smalti: the secret before signs too for {keep:g} h", err=True)


@contextmanager
def _tenants() -> "Iterator[TenantRepository]":
    from smalti.services.gateway.identity import TenantRepository

    with gateway_database("tenants") as database:
        yield TenantRepository(database, database.time)


@contextmanager
def _webhooks() -> "Iterator[WebhookRepository]":
    from smalti.services.gateway.webhooks import WebhookRepository

    with gateway_database("tenants") as database:
        yield WebhookRepository(database, database.time)


@contextmanager
def _options() -> Iterator[None]:
    """Names the option of a value that cannot be used."""
    try:
        yield
    except InvalidInputError as error:
        name = "TENANT" if error.field == "tenant" else f"--{COLUMNS.get(error.field, error.field)}"
        raise InvalidInputError(name, error.problem) from None


def _limits(given: dict[str, Any]) -> dict[str, int | None]:
    """Returns the limits that were given, by their columns."""
    limits: dict[str, int | None] = {}
    for column, option in COLUMNS.items():
        text = given[option.replace("-", "_")]
        if text is None:
            continue
        if text != NONE and not (text.isascii() and text.isdecimal()):
            raise InvalidInputError(column, f"must be a whole number or {NONE}, got {text[:40]!r}")
        limits[column] = None if text == NONE else int(text[:20])
    return limits


def _set(tenant: "Tenant") -> dict[str, Any]:
    """Returns the weight of a tenant, and the limits that it has."""
    limits = {option.replace("-", "_"): getattr(tenant, column) for column, option in COLUMNS.items()}
    return {
        "weight": tenant.weight or 1,
        **{name: value for name, value in limits.items() if value is not None},
    }


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _in_words(tenant: "Tenant") -> dict[str, Any]:
    """Returns a line on a tenant for people, who have no room for a column of each limit."""
    limits = _set(tenant)
    weight = limits.pop("weight")
    counts = {"open": tenant.open_jobs, "stored": tenant.stored_jobs}
    return {"tenant": tenant.id, "weight": weight, **counts, "limits": _words(limits)}


def _fields(tenant: "Tenant") -> dict[str, Any]:
    return {
        "tenant": tenant.id,
        "weight": tenant.weight,
        "open": tenant.open_jobs,
        "stored": tenant.stored_jobs,
        **{option.replace("-", "_"): getattr(tenant, column) for column, option in COLUMNS.items()},
    }


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("There is nothing.")
        return
    print_table([name.replace("_", " ") for name in rows[0]], (map(str, row.values()) for row in rows))
