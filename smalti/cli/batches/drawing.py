"""Shards on their way through the stages of one process: the generator is always fed, whatever the others do."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from smalti.batches import PlannedShard, PromptResult

POLL_SECONDS: Final = 0.2
GENERATING: Final = 2
"""Shards that are generated at a time: the next one fills the slots that the end of one leaves free."""


@dataclass(frozen=True, kw_only=True)
class DrawnShard:
    """A shard that was drawn."""

    number: int
    results: list[PromptResult]
    tar: Path | None
    """Its pictures; None if there are none."""


class Stop(Exception):  # noqa: N818
    """Ends the work of a thread, since the run has ended."""


class ShardStages(Protocol):
    """The stages of a shard; each is called by threads of its own, and calls `check` at times, which may raise."""

    def encode(self, shard: PlannedShard, check: Callable[[], None]) -> Any:
        """Encodes the prompts."""
        ...

    def generate(
        self, shard: PlannedShard, encoded: Any, on_done: Callable[[int], None], check: Callable[[], None]
    ) -> Any:
        """Generates the tokens; `on_done` is called with the number of candidates that are done."""
        ...

    def draw(
        self, shard: PlannedShard, encoded: Any, generated: Any, folder: Path, check: Callable[[], None]
    ) -> DrawnShard:
        """Decodes and ranks the pictures, and makes the tar in a folder."""
        ...


class Line:
    """A line of threads, one for each stage, with room for a shard between two of them."""

    def __init__(self, stages: ShardStages, folder: Path, on_done: Callable[[DrawnShard], None]) -> None:
        """Starts nothing yet.

        Args:
            stages: the stages.
            folder: where tars are made.
            on_done: called with each shard that was drawn, by one thread.
        """
        self._stages = stages
        self._folder = folder
        self._on_done = on_done
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._generated: dict[int, int] = {}
        self._generating = GENERATING

    @property
    def candidates(self) -> int:
        """Candidates that were generated of shards that are not done."""
        with self._lock:
            return sum(self._generated.values())

    def run(self, shards: Iterator[PlannedShard], on_wait: Callable[[], None]) -> None:
        """Draws shards; returns when all are done.

        Args:
            shards: the shards, in order; read by another thread as they are needed.
            on_wait: called by this thread now and then; what it raises ends the work.
        """
        encoded: queue.Queue[Any] = queue.Queue(1)
        generated: queue.Queue[Any] = queue.Queue(1)
        drawn: queue.Queue[Any] = queue.Queue(1)
        threads = [
            self._thread("encode", lambda: self._encode(shards, encoded)),
            *(
                self._thread(f"generate-{number}", lambda: self._generate(encoded, generated))
                for number in range(GENERATING)
            ),
            self._thread("draw", lambda: self._draw(generated, drawn)),
            self._thread("write", lambda: self._write(drawn)),
        ]
        try:
            while any(thread.is_alive() for thread in threads):
                threads[-1].join(POLL_SECONDS)
                on_wait()
                if self._stopped.is_set():
                    break
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _encode(self, shards: Iterator[PlannedShard], encoded: "queue.Queue[Any]") -> None:
        for shard in shards:
            self._put(encoded, (shard, self._stages.encode(shard, self._check)))
        for _ in range(GENERATING):
            self._put(encoded, None)

    def _generate(self, encoded: "queue.Queue[Any]", generated: "queue.Queue[Any]") -> None:
        while (item := self._get(encoded)) is not None:
            shard, encodings = item

            def on_done(done: int, number: int = shard.number) -> None:
                with self._lock:
                    self._generated[number] = done

            tokens = self._stages.generate(shard, encodings, on_done, self._check)
            self._put(generated, (shard, encodings, tokens))
        with self._lock:
            self._generating -= 1
            is_last = self._generating == 0
        if is_last:
            self._put(generated, None)

    def _draw(self, generated: "queue.Queue[Any]", drawn: "queue.Queue[Any]") -> None:
        while (item := self._get(generated)) is not None:
            shard, encoded, tokens = item
            self._put(drawn, self._stages.draw(shard, encoded, tokens, self._folder, self._check))
        self._put(drawn, None)

    def _write(self, drawn: "queue.Queue[Any]") -> None:
        while (output := self._get(drawn)) is not None:
            self._on_done(output)
            with self._lock:
                self._generated.pop(output.number, None)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            with self._reported():
                work()

        thread = threading.Thread(target=run, name=name)
        thread.start()
        return thread

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Keeps the first failure, and ends the other threads then."""
        try:
            yield
        except Stop:
            pass
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stopped.set()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stop

    def _put(self, line: "queue.Queue[Any]", item: Any) -> None:
        while True:
            self._check()
            try:
                return line.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    def _get(self, line: "queue.Queue[Any]") -> Any:
        while True:
            self._check()
            try:
                return line.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
