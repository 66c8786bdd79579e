"""The ports of `smalti up`, and the processes that hold taken ones."""

import shlex
from collections.abc import Collection, Iterable

import psutil

from smalti.errors import InvalidInputError
from smalti.up.servers import HOST, free_port, is_free

SERVICES = ("gateway", "encoder", "generator", "decoder", "ranker", "refiner")
"""The services that speak gRPC."""
WEB = "web"

DEFAULT_PORTS = {
    **{service: 50050 + place for place, service in enumerate(SERVICES)},
    **{f"{service}-metrics": 9150 + place for place, service in enumerate(SERVICES)},
    WEB: 8080,
    f"{WEB}-metrics": 9150 + len(SERVICES),
    "valkey": 6380,
    "s3": 8333,
}
"""The ports of all servers; each service has one for gRPC or HTTP, and one for metrics."""

FIRST_MORE, FIRST_MORE_METRICS = 50060, 9160
"""The first ports of workers beyond the first of each service."""
FREE = "free"


class Ports(dict[str, int]):
    """The port of each server, by the names of `default_ports`."""

    free: frozenset[str] = frozenset()
    """The names of ports that may change, since nobody has named a number."""

    def replace_taken(self, names: Iterable[str]) -> list[str]:
        """Exchanges free ones among some ports that another program has taken.

        Returns:
            a line for each exchange.
        """
        lines = []
        for name in names:
            number = self[name]
            if name in self.free and not is_free(number):
                self[name] = _free_but(self.values())
                lines.append(
                    f"{name} moves from port {number}, which {holder(number)} has taken, to {self[name]}"
                )
        return lines


def default_ports(workers: Iterable[str]) -> dict[str, int]:
    """Returns the default ports of a system.

    Args:
        workers: the names of its workers, such as "generator-2".
    """
    more = [name for name in workers if name not in DEFAULT_PORTS]
    return {
        **DEFAULT_PORTS,
        **{name: FIRST_MORE + place for place, name in enumerate(more)},
        **{f"{name}-metrics": FIRST_MORE_METRICS + place for place, name in enumerate(more)},
    }


def read_ports(text: str | None, workers: Iterable[str] = ()) -> Ports:
    """Returns the ports for the value of `--ports`.

    Args:
        text: "free" for free ports only, or a list of changes to the default ports such as "gateway=6000,s3=free".
        workers: the names of the workers of the system.

    Raises:
        InvalidInputError: the text has another form, an unknown name, or a port twice.
    """
    ports = Ports(default_ports(workers))
    if text == FREE:
        text = ",".join(f"{name}={FREE}" for name in ports)
    for part in text.split(",") if text else []:
        name, _, port = part.strip().partition("=")
        if name not in ports:
            raise InvalidInputError("ports", f"{name!r} must be one of {', '.join(ports)}")
        if port != FREE and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidInputError("ports", f"{name}={port}: must be a number from 1 to 65535, or {FREE}")
        ports[name] = _free_but(ports.values()) if port == FREE else int(port)
        ports.free = ports.free | {name} if port == FREE else ports.free - {name}
    for name, number in ports.items():
        if list(ports.values()).count(number) > 1:
            raise InvalidInputError(
                "ports", f"{name}={number}: another server has this port; choose a different one"
            )
    return ports


def taken(ports: dict[str, int]) -> list[str]:
    """Returns a line for each port that is taken, with the process that holds it."""
    return [
        f"port {port} of {HOST} (for {name}) is held by {holder(port)}"
        for name, port in ports.items()
        if not is_free(port)
    ]


def holder(port: int) -> str:
    """Returns the process that listens on a port, and its command line if it is visible."""
    for connection in psutil.net_connections("tcp"):
        here = connection.laddr[1] if connection.laddr else None
        if connection.status == psutil.CONN_LISTEN and here == port and connection.pid:
            try:
                command = shlex.join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                command = "command line not visible"
            return f"process {connection.pid} ({command})"
    return "an invisible process, perhaps of another user"


def _free_but(others: Collection[int]) -> int:
    while (port := free_port()) in others:
        pass
    return port
