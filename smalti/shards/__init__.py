"""The stages of a batch as compute: each takes the files of a shard and writes the next ones, without a network."""

__all__ = []
