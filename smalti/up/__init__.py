"""The whole system on one machine: its processes, started, watched, and stopped."""
