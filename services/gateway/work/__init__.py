"""The gateway's own work: sending chunks, taking the stages' events, finishing and sweeping jobs."""
