"""The four stages as compute: compiled programs, batching, sampling; no network."""
