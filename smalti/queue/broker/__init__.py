"""The brokers: which queues there are, in which order they are polled, and kombu's transports, made stricter."""

__all__ = ["order", "queues", "transport"]
