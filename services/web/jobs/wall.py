"""The walls: every mosaic that is being drawn right now, for all visitors at once, or for those with a key.

One feed follows the jobs, with one stream of the gateway for each, however many visitors look. A visitor with a key
sees what the gateway shows with it: the jobs of its tenant. Visitors get neither the ids of jobs nor, unless the
operator wants it, their prompts.
"""

import asyncio
import contextvars
import logging
import secrets
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

from sse_starlette import ServerSentEvent

from smalti.client import AsyncClient, Event, has_ended
from smalti.errors import SmaltiError
from smalti.rpc.observer import request_id
from smalti.services.web.gateway import Caller, Catalogue, current_caller
from smalti.services.web.jobs import sse
from smalti.services.web.pictures import small_webp
from smalti.v1.generator_pb2 import RowsDrawn
from smalti.v1.image_pb2 import Preview
from smalti.v1.job_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED, Job, JobState

log = logging.getLogger(__name__)

LABEL: Final = "wall"
"""The label of a job; the value "off" keeps it from the wall."""
MAX_DRAWINGS: Final = 12
"""Number of jobs that are followed at the same time; further ones are shown when there is room."""
MAX_QUEUED: Final = 4
"""Number of jobs that are followed while they wait, so that their first rows are not missed."""
MAX_CANDIDATES: Final = 64
"""Number of candidates of a job that are shown."""
MAX_BEHIND: Final = 256
"""Number of messages that wait for a slow visitor; with more, the visitor gets the whole wall anew."""
LOOK_SECONDS: Final = 1.0
"""Interval between two looks for jobs of other processes; those of this one are seen at once."""

Message = tuple[str, str]
"""The name of an event, and its data."""


class Wall:
    """What the visitors see. Only the event loop may use it. Nothing is followed while there are no visitors."""

    def __init__(
        self, client: AsyncClient, catalogue: Catalogue, *, prompts: bool, authorization: str = ""
    ) -> None:
        """Begins without visitors.

        Args:
            client: follows the jobs.
            catalogue: the models, which say how many tiles a picture has.
            prompts: whether visitors see the prompts.
            authorization: with which key the gateway is called.
        """
        self._authorization = authorization
        self._client = client
        self._catalogue = catalogue
        self._prompts = prompts
        self._visitors: set[_Visitor] = set()
        self._drawings: dict[str, _Drawing] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._feed: asyncio.Task[None] | None = None
        self._wakeup = asyncio.Event()

    def look(self) -> None:
        """Looks for jobs now, since one was created."""
        self._wakeup.set()

    async def visit(self) -> AsyncGenerator[ServerSentEvent, None]:
        """Yields the wall as it is, and then what changes."""
        visitor = _Visitor()
        self._visitors.add(visitor)
        if self._feed is None:
            # In a context of its own: the feed does not call on behalf of the visitor who happens to be first.
            alone = contextvars.Context()
            if self._authorization:
                caller = Caller(address="", request_id=request_id(""), authorization=self._authorization)
                alone.run(current_caller.set, caller)
            self._feed = asyncio.create_task(self._run(), context=alone)
        try:
            while True:
                await visitor.wakeup.wait()
                for name, data in visitor.take(self._whole):
                    yield sse.event(data, name=name)
        finally:
            self._visitors.discard(visitor)
            if not self._visitors:
                self._stop()

    async def _run(self) -> None:
        while True:
            self._wakeup.clear()
            try:
                await self._find_jobs()
            except SmaltiError as error:
                log.info("cannot look for jobs for the wall: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wakeup.wait()

    @property
    def is_empty(self) -> bool:
        """Whether nobody looks."""
        return not self._visitors

    def _stop(self) -> None:
        for task in (self._feed, *self._following.values()):
            if task is not None:
                task.cancel()
        self._feed = None
        self._following.clear()
        self._drawings.clear()

    async def _find_jobs(self) -> None:
        running = await self._client.page(states=("running",), page_size=MAX_DRAWINGS)
        queued = await self._client.page(states=("queued",), page_size=MAX_QUEUED)
        for job in (*running.jobs, *queued.jobs):
            if job.id in self._following or job.labels.get(LABEL) == "off":
                continue
            if len(self._following) >= MAX_DRAWINGS and not self._make_room(job):
                return
            self._following[job.id] = asyncio.create_task(self._follow(job))

    def _make_room(self, job: Job) -> bool:
        """Stops following a job that waits, for one that is drawn; returns whether there was one."""
        waiting = next((each for each in self._following if each not in self._drawings), None)
        if job.state != JOB_STATE_RUNNING or waiting is None:
            return False
        self._following.pop(waiting).cancel()
        return True

    async def _follow(self, job: Job) -> None:
        """Shows a job until it has ended."""
        task = asyncio.current_task()
        try:
            model = await self._catalogue.find(job.parameters.model.name)
            size = model.rows, model.columns
            async with aclosing(self._client.events(job.id)) as events:
                async for event in events:
                    await self._take(job, event, size)
        except SmaltiError as error:
            log.info("a job cannot be shown on the wall: %s", error, extra={"job": job.id})
        finally:
            if self._following.get(job.id) is task:
                del self._following[job.id]
                self._close(job.id, None)

    async def _take(self, job: Job, event: Event, size: tuple[int, int]) -> None:
        drawing = self._drawings.get(job.id)
        if isinstance(event, Job):
            if has_ended(event):
                await self._end(event, drawing)
                return
            if event.state != JOB_STATE_RUNNING:
                return
        if drawing is None:
            drawing = self._drawings[job.id] = _Drawing(job, size, prompt=self._prompts)
            self._send(("drawing", sse.compact(drawing.description)))
        if isinstance(event, RowsDrawn):
            if message := drawing.lay(event):
                self._send(message)
        elif isinstance(event, Preview) and event.candidate in drawing.candidates:
            content = await small_webp(event.image.data)
            self._send(drawing.colour(event.candidate, event.rows_drawn, content))

    async def _end(self, job: Job, drawing: "_Drawing | None") -> None:
        if drawing is not None and job.state == JOB_STATE_SUCCEEDED:
            # The pictures themselves: the last preview may lack rows.
            async for picture in self._client.download(job):
                if picture.candidate in drawing.candidates:
                    content = await small_webp(picture.content)
                    self._send(drawing.colour(picture.candidate, drawing.rows, content))
        self._close(job.id, job)

    def _close(self, job_id: str, job: Job | None) -> None:
        """Takes a drawing from the wall; `job` is how it has ended, None if that is not known."""
        drawing = self._drawings.pop(job_id, None)
        if drawing is None:
            return
        state = JobState.Name(job.state).removeprefix("JOB_STATE_").lower() if job else "lost"
        chosen = [picture.candidate for picture in job.pictures] if job else []
        self._send(("ended", sse.compact({"id": drawing.id, "state": state, "chosen": chosen})))

    def _send(self, message: Message) -> None:
        for visitor in self._visitors:
            visitor.put(message)

    def _whole(self) -> Iterator[Message]:
        """Yields the wall as it is."""
        drawings = list(self._drawings.values())
        yield "wall", sse.compact({"drawings": [drawing.description for drawing in drawings]})
        for drawing in drawings:
            yield from drawing.so_far()


class Walls:
    """A wall for each key, and one for all visitors without. Only the event loop may use it."""

    def __init__(self, client: AsyncClient, catalogue: Catalogue, *, prompts: bool) -> None:
        """Begins without walls; the arguments are those of `Wall`."""
        self._make = partial(Wall, client, catalogue, prompts=prompts)
        self._walls: dict[str, Wall] = {}

    def look(self) -> None:
        """Looks for jobs now, since one was created."""
        for wall in self._walls.values():
            wall.look()

    async def visit(self) -> AsyncGenerator[ServerSentEvent, None]:
        """Yields the wall of the current caller as it is, and then what changes."""
        authorization = current_caller.get().authorization
        wall = self._walls.setdefault(authorization, self._make(authorization=authorization))
        try:
            async with aclosing(wall.visit()) as events:
                async for event in events:
                    yield event
        finally:
            if wall.is_empty and self._walls.get(authorization) is wall:
                del self._walls[authorization]


class _Visitor:
    """What waits for a visitor."""

    def __init__(self) -> None:
        self.wakeup = asyncio.Event()
        self.wakeup.set()
        self._waiting: deque[Message] = deque()
        self._behind = True

    def put(self, message: Message) -> None:
        if self._behind:
            return
        self._waiting.append(message)
        self._behind = len(self._waiting) > MAX_BEHIND
        self.wakeup.set()

    def take(self, whole: Callable[[], Iterator[Message]]) -> Sequence[Message]:
        """Returns what waits; for a new visitor, and one that is too far behind, the `whole` wall."""
        self.wakeup.clear()
        messages = list(whole()) if self._behind else list(self._waiting)
        self._behind = False
        self._waiting.clear()
        return messages


class _Drawing:
    """A job as the wall shows it."""

    def __init__(self, job: Job, size: tuple[int, int], *, prompt: bool) -> None:
        self.id = secrets.token_hex(8)
        """Stands for the job, whose own id would open it."""
        self.rows, columns = size
        parameters = job.parameters
        first, count = parameters.first_candidate, min(parameters.candidates, MAX_CANDIDATES)
        self.candidates = range(first, first + count)
        self.description = {
            "id": self.id,
            "rows": self.rows,
            "columns": columns,
            "first": first,
            "count": count,
            **({"prompt": parameters.prompt} if prompt else {}),
        }
        self._runs: dict[tuple[int, int], dict[str, Any]] = {}
        self._previews: dict[int, Message] = {}

    def lay(self, drawn: RowsDrawn) -> Message | None:
        """Keeps new rows, and returns the message about them; None if none of them is shown."""
        runs = []
        for run in drawn.runs:
            if run.candidate in self.candidates:
                laid = {"candidate": run.candidate, "start": run.start, "tokens": list(run.tokens)}
                self._runs[run.candidate, run.start] = laid
                runs.append(laid)
        return self._rows(runs) if runs else None

    def colour(self, candidate: int, rows: int, content: bytes) -> Message:
        """Keeps a preview, and returns the message about it."""
        data = {
            "id": self.id,
            "candidate": candidate,
            "rows_drawn": rows,
            "media_type": "image/webp",
            "data": b64encode(content).decode(),
        }
        message = self._previews[candidate] = ("preview", sse.compact(data))
        return message

    def so_far(self) -> Iterator[Message]:
        """Yields what a new visitor has missed."""
        if self._runs:
            yield self._rows(list(self._runs.values()))
        yield from self._previews.values()

    def _rows(self, runs: list[dict[str, Any]]) -> Message:
        return "rows", sse.compact({"id": self.id, "runs": runs})
