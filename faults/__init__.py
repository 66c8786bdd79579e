"""The fault matrix: real processes, real faults, and an account of every job; `python -m faults`."""
