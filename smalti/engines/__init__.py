"""The four stages as computation in this process: compiled programs, batching, sampling."""
