"""What the services need from others: broker, object store, database and gateway, each if a setting names it."""

from collections.abc import Callable, Iterator
from typing import Final

from smalti.doctor.finding import Finding, State, ask
from smalti.errors import BrokerUnavailableError, InvalidInputError
from smalti.settings import PREFIX, is_set, settings

SECONDS: Final = 5.0
"""Time in which each must answer."""


def examine_services(*, everything: bool = False) -> Iterator[Finding]:
    """Yields what was found about the servers that settings name.

    Args:
        everything: whether to ask for those that have their default address, too.
    """
    questions: dict[str, tuple[str, Callable[[], str | Finding]]] = {
        "broker": (f"{PREFIX}BROKER_URL", _broker),
        "object store": (f"{PREFIX}STORE_URL", _store),
        "database": (f"{PREFIX}GATEWAY_DATABASE", _database),
        "gateway": (f"{PREFIX}SERVER", _gateway),
    }
    for subject, (variable, question) in questions.items():
        if everything or is_set(variable):
            yield ask(subject, question)


def _broker() -> str:
    from smalti.queue import broker_settings, check_broker

    name = f"{PREFIX}BROKER_URL"
    found = broker_settings()
    try:
        return f"{check_broker(found, SECONDS)} answers"
    except BrokerUnavailableError as error:
        raise BrokerUnavailableError(f"{name}: {error}") from None


def _store() -> str:
    from smalti.storage import open_store, store_settings

    found = store_settings().model_copy(update={"timeout": SECONDS, "tries": 1})
    open_store(found).check()
    return f"{found.url.get_secret_value().rpartition('@')[2]} can be written"


def _database() -> str | Finding:
    from smalti.services.gateway.database.opening import operators_database
    from smalti.services.gateway.settings import gateway_settings

    found = gateway_settings()
    with operators_database(found, SECONDS) as database:
        state = database.examine(migrates=found.migrate)
        if state.is_current:
            return f"{state.found}, schema {state.revision}"
        if not found.migrate:
            raise InvalidInputError(f"{PREFIX}GATEWAY_DATABASE", state.behind)
        if state.revision is None:
            return f"{state.found}, whose tables the gateway makes at its start"
        text = f"{state.found} {state.behind}, or start a gateway, which does it"
        return Finding(subject="database", state=State.NOTE, text=text)


def _gateway() -> str:
    from smalti.client import Client

    with Client(settings().server, call_seconds=SECONDS, retry_seconds=0) as client:
        try:
            models = [model.reference.name for model in client.models()]
        except InvalidInputError as error:
            raise InvalidInputError(f"{PREFIX}SERVER", error.problem) from None
        return f"{client.server} draws with {', '.join(models)}"
