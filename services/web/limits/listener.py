"""A listening socket that takes a limited number of connections."""

import socket
from typing import Any, Final, Self
from weakref import WeakSet

from smalti.network import max_connections

BACKLOG: Final = 2048


class LimitedListener(socket.socket):
    """Closes connections above its limit at once, also those that have not begun TLS yet."""

    _limit = 0
    _accepted: "WeakSet[socket.socket]"

    @classmethod
    def listening(cls, address: tuple[str, int], family: socket.AddressFamily, connections: int) -> Self:
        """Returns a socket that listens on an address.

        Args:
            address: host and port.
            family: the family of the address.
            connections: maximum number of connections; fewer if the process may open only few files.

        Raises:
            OSError: the address cannot be used.
        """
        with socket.create_server(address, family=family, backlog=BACKLOG) as plain:
            made = cls(plain.family, plain.type, plain.proto, fileno=plain.detach())
        made._limit = max_connections(connections)
        made._accepted = WeakSet()
        return made

    def accept(self) -> tuple[socket.socket, Any]:
        """Takes a connection; raises `BlockingIOError` if there is none, or if there was one too many."""
        connection, address = super().accept()
        # Closed sockets live on for as long as something refers to them.
        if (
            len(self._accepted) >= self._limit
            and sum(each.fileno() >= 0 for each in self._accepted) >= self._limit
        ):
            connection.close()
            raise BlockingIOError
        self._accepted.add(connection)
        return connection, address
