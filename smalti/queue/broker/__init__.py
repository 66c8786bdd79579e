"""The brokers: which queues there are, in which order they are polled, kombu's transports, the threads
of a worker, and what all are told."""

__all__ = ["broadcast", "order", "pool", "queues", "transport"]
