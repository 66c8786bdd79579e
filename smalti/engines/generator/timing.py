"""When the generator's loop last made progress, and how fast it is."""

import time
from dataclasses import dataclass, field


@dataclass
class LoopTiming:
    """The time of the loop's last progress, and its speed."""

    last_beat: float = field(default_factory=time.monotonic)
    dispatch_seconds: float = 0.0
    """Duration of a dispatch, smoothed; 0 before the first one."""

    def beat(self) -> None:
        """Records that the loop is alive."""
        self.last_beat = time.monotonic()

    def record(self, seconds: float) -> None:
        """Records the duration of one dispatch."""
        self.dispatch_seconds = (
            0.8 * self.dispatch_seconds + 0.2 * seconds if self.dispatch_seconds else seconds
        )
