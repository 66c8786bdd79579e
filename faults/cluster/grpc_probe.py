"""Asks a port of this container for its health by gRPC, as kubelet does since Kubernetes 1.24.

Runs in the container, as a program of its own: `python -I -S -c SOURCE PORT SERVICE`. It imports nothing but sockets,
since it runs every few seconds.
"""

import socket
import struct
import sys

SERVING = b"\x08\x01"
FRAME_HEADER = 9
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Returns a frame of HTTP/2."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def header(name: bytes, value: bytes) -> bytes:
    """Returns a header that is sent as it is."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def check(port: int, service: bytes) -> bytes:
    """Returns the answer of the health service."""
    asked = b"\x0a" + bytes([len(service)]) + service if service else b""
    headers = (
        header(b":method", b"POST")
        + header(b":scheme", b"http")
        + header(b":path", b"/grpc.health.v1.Health/Check")
        + header(b":authority", b"localhost")
        + header(b"te", b"trailers")
        + header(b"content-type", b"application/grpc")
    )
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(5)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, headers))
        connection.sendall(frame(DATA, END_STREAM, 1, b"\x00" + struct.pack(">I", len(asked)) + asked))
        stream = connection.makefile("rb")
        while True:
            size, kind, flags, _ = struct.unpack(">IBBI", b"\x00" + stream.read(FRAME_HEADER))
            content = stream.read(size)
            if kind == DATA:
                return content[5:]
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0, b""))
            if kind == PING and not flags & ACK:
                connection.sendall(frame(PING, ACK, 0, content))
            if kind == HEADERS and flags & END_STREAM:
                return b""  # An error, whose status is in these headers.


if __name__ == "__main__":
    try:
        answer = check(int(sys.argv[1]), sys.argv[2].encode())
    except (OSError, struct.error) as error:
        sys.exit(f"the health port does not answer: {error}")
    if answer != SERVING:
        sys.exit(f"not serving: {answer!r}")
