"""The ports of `smalti up`, and who holds one that is taken."""

import shlex
from collections.abc import Collection

import psutil

from smalti.errors import InvalidInputError
from smalti.up.servers import HOST, free_port, is_free

SERVICES = ("gateway", "encoder", "generator", "decoder", "ranker")

DEFAULT_PORTS = {
    **{service: 50050 + place for place, service in enumerate(SERVICES)},
    **{f"{service}-metrics": 9150 + place for place, service in enumerate(SERVICES)},
    "valkey": 6380,
    "s3": 8333,
}
"""What listens where; the services listen for gRPC, and for Prometheus."""

FREE = "free"


def read_ports(text: str | None) -> dict[str, int]:
    """Returns the ports that a user asks for.

    Args:
        text: "free" for free ports throughout, or "gateway=6000,s3=free" for those that are to be others than usual.

    Raises:
        InvalidInputError: it has another form, a name that there is not, or a port twice.
    """
    ports = dict(DEFAULT_PORTS)
    if text == FREE:
        text = ",".join(f"{name}={FREE}" for name in ports)
    for part in text.split(",") if text else []:
        name, _, port = part.strip().partition("=")
        if name not in ports:
            raise InvalidInputError("ports", f"{name!r} is none of {', '.join(ports)}")
        if port != FREE and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidInputError(
                "ports", f"{name}={port}: a number from 1 to 65535, or {FREE}, is expected"
            )
        ports[name] = _free_but(ports.values()) if port == FREE else int(port)
    for name, number in ports.items():
        if list(ports.values()).count(number) > 1:
            raise InvalidInputError("ports", f"{name}={number}: the port is given to two")
    return ports


def taken(ports: dict[str, int]) -> list[str]:
    """Returns a line for each port that somebody holds, with who that is."""
    return [
        f"port {port} of {HOST}, for {name}, is held by {holder(port)}"
        for name, port in ports.items()
        if not is_free(port)
    ]


def holder(port: int) -> str:
    """Returns the process that listens on a port, with its command line, as far as it may be seen."""
    for connection in psutil.net_connections("tcp"):
        here = connection.laddr[1] if connection.laddr else None
        if connection.status == psutil.CONN_LISTEN and here == port and connection.pid:
            try:
                command = shlex.join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                command = "its command line cannot be seen"
            return f"process {connection.pid} ({command})"
    return "a process that cannot be seen, perhaps another user's"


def _free_but(others: Collection[int]) -> int:
    while (port := free_port()) in others:
        pass
    return port
