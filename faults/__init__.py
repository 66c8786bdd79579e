"""The fault matrix, `python -m faults`: injects faults into real processes, and accounts for every job."""
