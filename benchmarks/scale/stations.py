"""A part of the system that serves one request after another."""

import heapq

import simpy


class Station:
    """Serves requests in the order of their arrival, each by the first of its servers that is free."""

    def __init__(self, env: simpy.Environment, name: str, servers: int) -> None:
        """Starts without requests.

        Args:
            env: the simulation.
            name: the name in tables.
            servers: requests that are served at the same time, such as the cores of a machine.
        """
        self.name = name
        self.waited = 0.0
        """Seconds that all requests waited before they were served."""
        self.longest = 0.0
        """The longest of these times."""
        self.requests = 0
        self._env = env
        # When each server is free. A request's end is known on arrival, so it needs a single event.
        self._free = [0.0] * servers
        self._busy = 0.0

    def serve(self, seconds: float) -> simpy.Timeout:
        """Returns the event that a request which takes `seconds` of a server has been served."""
        now = self._env.now
        begin = max(now, self._free[0])
        heapq.heapreplace(self._free, begin + seconds)
        self._busy += seconds
        self.requests += 1
        self.waited += begin - now
        self.longest = max(self.longest, begin - now)
        return self._env.timeout(begin - now + seconds)

    @property
    def use(self) -> float:
        """The share of the servers' time that was used until now, 0 to 1."""
        now = self._env.now
        ahead = sum(max(0.0, free - now) for free in self._free)
        return (self._busy - ahead) / (len(self._free) * now) if now else 0.0
