"""Shared by tests, fault matrix and benchmarks, not shipped: servers, processes, proxies, harnesses."""
