"""The brokers: which queues there are, in which order they are polled, kombu's transports, and what all are told."""

__all__ = ["broadcast", "order", "queues", "transport"]
