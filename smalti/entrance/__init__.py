"""The first thing that every program of Smalti does: signals, streams, and the variables of other programs."""

from smalti.entrance.beginning import begin

__all__ = ["begin", "proxies", "signals", "streams", "variables"]
