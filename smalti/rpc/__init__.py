"""The shared part of gRPC servers and clients: errors, settings, TLS, health, deadlines, conversion of messages."""

__all__ = [
    "calls",
    "channel",
    "conversion",
    "errors",
    "identity",
    "observer",
    "places",
    "reasons",
    "server",
    "settings",
    "tls",
]
