"""What gRPC servers and clients share: errors, settings, TLS, health, deadlines, conversion of messages."""

__all__ = [
    "calls",
    "channel",
    "conversion",
    "errors",
    "observer",
    "reasons",
    "server",
    "settings",
    "tls",
]
