"""TLS to PostgreSQL, whose client would accept plaintext and any certificate by default."""

import os
from typing import Final

from sqlalchemy.engine import URL

from smalti.network import check_plaintext, is_this_machine
from smalti.services.gateway.settings import GATEWAY_PREFIX
from smalti.settings import settings

VERIFY: Final = "verify-full"
"""The only `sslmode` that checks both the authority and the name in the server's certificate."""


def with_tls(url: URL) -> URL:
    """Returns the address of PostgreSQL with TLS required and checked, if the server is another machine.

    A `sslmode` in the address, or in `PGSSLMODE`, must be `verify-full`. Without `sslrootcert`, the authorities of the
    system are trusted.

    Raises:
        InvalidInputError: another `sslmode` is given, and `SMALTI_PLAINTEXT` does not allow it.
    """
    others = [host for host in _hosts(url) if not is_this_machine(host)]
    if not others:
        return url
    mode = _first(url, "sslmode") or os.environ.get("PGSSLMODE")
    if mode != VERIFY and mode is not None:
        problem = f"has sslmode={mode}, which does not check the server's certificate"
        check_plaintext(others[0], f"{GATEWAY_PREFIX}DATABASE", f"{problem}; give sslmode={VERIFY}")
        return url
    if mode is None and settings().plaintext:
        return url
    query = {"sslmode": VERIFY}
    if _first(url, "sslrootcert") is None and not os.environ.get("PGSSLROOTCERT"):
        query["sslrootcert"] = "system"
    return url.update_query_dict(query)


def _hosts(url: URL) -> list[str]:
    """Returns the servers that libpq tries; an address may list several, each perhaps with its port."""
    found = [url.host] if url.host else []
    for name in ("host", "hostaddr"):
        value = url.query.get(name, ())
        for each in (value,) if isinstance(value, str) else value:
            found += [_without_port(host) for host in each.split(",") if host]
    for variable in ("PGHOST", "PGHOSTADDR"):
        if not found:
            found += [host for host in os.environ.get(variable, "").split(",") if host]
    return found


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name.strip("[]") else host


def _first(url: URL, name: str) -> str | None:
    value = url.query.get(name)
    return value if isinstance(value, str) or value is None else value[0]
