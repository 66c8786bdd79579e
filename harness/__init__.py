"""What tests, the fault matrix and the benchmarks share: real servers, proxies and stands; not shipped."""
