"""Processes that decode picture files, with limits of time, processor time and memory."""

import asyncio
import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import PIL

from smalti.errors import InvalidInputError
from smalti.picture_files.header import MAX_PIXELS, MAX_SIDE

FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""The formats in which input pictures are accepted."""
PROCESSES: Final = 2
"""Pictures that are decoded at the same time."""
PROCESSOR_SECONDS: Final = 5
"""Processor time for one picture; the largest ones of an ordinary kind take about one second."""
SECONDS: Final = 20.0
"""Time for one picture; longer than the processor time, since the machine may be busy."""
MEMORY_BYTES: Final = 2**30
"""Address space of a process."""
REMEDY: Final = "save it again as a plain PNG or JPEG file"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a process made of a file."""

    width: int
    height: int
    content: bytes
    """RGB pixels, tiles, or a text, as it was asked for."""
    missing: bool = False
    """Whether the text that was asked for is not in the file."""


class _Child:
    """A process that decodes one picture after the other."""

    def __init__(self, memory: int, processor_seconds: int) -> None:
        script = Path(__file__).with_name("child.py")
        libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, Path(PIL.__file__).parent.parent, str(memory), str(processor_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=libraries,
            cwd="/",
        )  # fmt: skip

    def ask(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
        """Sends a request; raises OSError or ValueError if the process ends before its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({**request, "bytes": len(content)}).encode() + b"\n")
        self.process.stdin.write(content)
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        payload = self.process.stdout.read(answer["bytes"])
        if len(payload) < answer["bytes"]:
            raise EOFError
        return answer, payload

    def kill(self) -> int:
        """Ends the process, and returns its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        return self.process.wait()


class _Reading:
    """A picture that waits or is being decoded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: _Child | None = None
        self.given_up = False
        self.late = False

    def begin(self, child: _Child | None) -> bool:
        """Sets the process that decodes the picture; returns False if nobody waits any more."""
        with self.lock:
            self.child = child
            return not self.given_up

    def end(self, *, late: bool = False) -> None:
        """Gives the picture up: kills its process, which frees its place."""
        with self.lock:
            self.given_up, self.late = True, self.late or late
            if self.child is not None:
                self.child.process.kill()


class PictureReader:
    """Decodes pictures in processes that are started when they are first needed; thread-safe.

    A process that exceeds a limit ends, and the next picture gets a new one.
    """

    def __init__(
        self,
        *,
        processes: int = PROCESSES,
        processor_seconds: int = PROCESSOR_SECONDS,
        seconds: float = SECONDS,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._seconds = seconds
        self._start = functools.partial(_Child, memory, processor_seconds)
        # Each thread has a process of its own.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="picture-reader")
        self._local = threading.local()
        self._children: set[_Child] = set()

    def read(
        self,
        content: bytes,
        field: str,
        want: str = "rgb",
        *,
        side: int | None = None,
        formats: Sequence[str] = FORMATS,
        max_side: int = MAX_SIDE,
    ) -> Decoded:
        """Decodes a picture.

        Args:
            content: the file.
            field: the path of the picture in the request, for errors.
            want: "rgb" for its pixels, upright, with white in place of transparency; "size" for its size alone;
                "tiles" for a byte per tile, 1 where a pixel is fully transparent; "text" for our text chunk of a PNG.
            side: with "rgb" the side of a centred square to which the picture is scaled; with "tiles" their number in a
                row.
            formats: the formats that are accepted, by Pillow's names.
            max_side: the largest width and height.

        Raises:
            InvalidInputError: the file is damaged, or exceeds a limit.
        """
        request = _request(want, side, formats, max_side)
        return self._submit(_Reading(), request, content, field).result()

    async def receive(
        self, content: bytes, field: str, want: str = "rgb", *, side: int | None = None
    ) -> Decoded:
        """Decodes a picture; see `read`. A task that is cancelled frees its place at once."""
        request = _request(want, side, FORMATS, MAX_SIDE)
        reading = _Reading()
        future = self._submit(reading, request, content, field)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            reading.end()
            raise

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
            child.kill()
        self._children.clear()

    def _submit(
        self, reading: _Reading, request: dict[str, Any], content: bytes, field: str
    ) -> "Future[Decoded]":
        return self._threads.submit(self._read, reading, request, content, field)

    def _read(self, reading: _Reading, request: dict[str, Any], content: bytes, field: str) -> Decoded:
        child: _Child | None = getattr(self._local, "child", None)
        if child is None or child.process.poll() is not None:
            child = self._local.child = self._start()
            self._children.add(child)
        timer = threading.Timer(self._seconds, functools.partial(reading.end, late=True))
        timer.daemon = True
        timer.start()
        try:
            if not reading.begin(child):
                raise EOFError  # The call has ended, so nobody sees the error.
            answer, payload = child.ask(request, content)
        except (OSError, ValueError, EOFError):
            self._local.child = None
            self._children.discard(child)
            raise self._ended(child.kill(), reading, field) from None
        finally:
            timer.cancel()
            reading.begin(None)
        if reading.given_up:  # It may have been killed after its answer.
            self._local.child = None
            self._children.discard(child)
            child.kill()
        if "error" in answer:
            raise InvalidInputError(field, _problem(answer, request["formats"]))
        return Decoded(
            width=answer["width"],
            height=answer["height"],
            content=payload,
            missing=answer.get("missing", False),
        )

    def _ended(self, code: int, reading: _Reading, field: str) -> InvalidInputError:
        if reading.late or code == -signal.SIGXCPU:
            return InvalidInputError(field, f"takes too long to read; {REMEDY}")
        return InvalidInputError(field, f"cannot be read, since it ends the process that reads it; {REMEDY}")


def _request(want: str, side: int | None, formats: Sequence[str], max_side: int) -> dict[str, Any]:
    return {
        "want": want,
        "side": side,
        "formats": list(formats),
        "max_side": max_side,
        "max_pixels": MAX_PIXELS,
    }


def _problem(answer: dict[str, Any], formats: Sequence[str]) -> str:
    if answer["error"] == "UnidentifiedImageError":
        *others, last = ["WebP" if name == "WEBP" else name for name in formats]
        return f"must be a picture in {', '.join(others)}{' or ' if others else ''}{last} format"
    if answer["error"] == "MemoryError":
        return f"needs too much memory to read; {REMEDY}"
    return f"cannot be read: {' '.join(answer['text'].split())[:200]}"


@functools.cache
def reader(memory: int = MEMORY_BYTES) -> PictureReader:
    """Returns the reader of this process whose processes have so much memory, in bytes."""
    made = PictureReader(memory=memory)
    atexit.register(made.close)
    return made


# A forked process has neither the threads nor the processes of its parent.
os.register_at_fork(after_in_child=reader.cache_clear)
