"""The public contract in Python: generated from `protos/smalti/v1/` by `make protos`, but for this file."""
