"""The gateway's gRPC surface: requests checked, calls answered, jobs watched."""
