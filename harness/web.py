"""The web service for tests: in this process, with a real gateway whose stages are played."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from harness.batches import BatchHarness
from harness.gateway import GatewayHarness, finish_chunk, sqlite_database
from harness.loop_thread import LIMIT, LoopThread, Result
from harness.service import ONCE
from harness.waiting import wait_until
from smalti.messages import GenerateTask
from smalti.pictures import plain_png_bytes
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import channel
from smalti.rpc.server import serve
from smalti.services.gateway.api.batches import BatchServicer, EditTokens
from smalti.services.gateway.api.file_servicer import FileServicer
from smalti.services.gateway.api.kinds import KINDS
from smalti.services.gateway.api.servicer import ImageServicer
from smalti.services.gateway.database.clock import ManualClock
from smalti.services.gateway.jobs.repository import JobFilter, JobSnapshot
from smalti.services.web.service import WebServer
from smalti.services.web.settings import WebSettings
from smalti.settings import Auth
from smalti.storage import ObjectStore
from smalti.telemetry import Metrics
from smalti.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from smalti.v1.decoder_pb2 import (
    DecodeRequest,
    DecodeResponse,
    EncodedImage,
    EncodeImagesRequest,
    EncodeImagesResponse,
)
from smalti.v1.decoder_pb2_grpc import (
    DecoderServiceServicer,
    DecoderServiceStub,
    add_DecoderServiceServicer_to_server,
)
from smalti.v1.file_pb2_grpc import add_FileServiceServicer_to_server
from smalti.v1.image_pb2_grpc import add_ImageServiceServicer_to_server
from smalti.v1.tokens_pb2 import ImageTokens

SHIPPED = ModelSpec.load(library.find("pictograms"))
"""The specification of the shipped model; nothing is computed with it."""
SIZE, SIDE, TOKENS = SHIPPED.resolution, SHIPPED.side, SHIPPED.tokens
"""Pixels and tiles along a side of a picture, and tiles of a picture."""
PAUSE = 0.01


def picture_file(seed: int, index: int) -> bytes:
    """Returns the file of a candidate; its colour is its index."""
    return plain_png_bytes(Image.new("RGB", (SIZE, SIZE), (index % 256, seed % 256, 0)))


class RunningClock(ManualClock):
    """The machine's clock, which `advance` moves forward."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def __call__(self) -> float:  # noqa: D102
        return time.time() + self.now


class _Decoder(DecoderServiceServicer):
    """Decodes every picture to white, and encodes pictures to the brightness of their tiles."""

    def __init__(self, side: int) -> None:
        self._side = side

    async def Decode(self, request: DecodeRequest, context: Any) -> AsyncIterator[DecodeResponse]:  # noqa: N802
        content = plain_png_bytes(Image.new("RGB", (SIZE, SIZE), "white"))
        image = EncodedImage(data=content, media_type="image/png", width=SIZE, height=SIZE)
        for index in range(len(request.pictures)):
            yield DecodeResponse(index=index, image=image)

    async def EncodeImages(self, request: EncodeImagesRequest, context: Any) -> EncodeImagesResponse:  # noqa: N802
        # Tile by tile: a token is the brightness of its tile.
        pictures = []
        for content in request.images:
            with Image.open(io.BytesIO(content)) as opened:
                small = opened.convert("L").resize((self._side, self._side), Image.Resampling.BOX)
            pictures.append(ImageTokens(tokens=list(small.tobytes())))
        return EncodeImagesResponse(pictures=pictures)


class WebHarness:
    """A web service and its gateway in a thread. Jobs are drawn at once, unless `paused` says otherwise."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        gateway: dict[str, Any] | None = None,
        store: ObjectStore | None = None,
        auth: Sequence[Auth] = (),
        batches: bool = False,
        **settings: Any,
    ) -> None:
        """Starts serving.

        Args:
            folder: an empty folder for the database.
            spec: the model.
            gateway: settings of the gateway that differ from the defaults.
            store: the object store; None creates one in memory.
            auth: how callers of the gateway say who they are; everybody may do everything if it is empty.
            batches: whether batches are drawn, too.
            **settings: settings of the web service that differ from the defaults.
        """
        self._database = sqlite_database(folder)
        self._side = spec.side
        self._auth = auth
        options = {"previews": 0.02, "sweep": 0.05, **(gateway or {})}
        if batches:
            options["write"] = 3
        self.gateway = GatewayHarness(self._database, spec, store=store, clock=RunningClock(), **options)
        self.gateway.stages.picture = picture_file
        self.batches = BatchHarness(self.gateway) if batches else None
        self.metrics = Metrics("web")
        self._settings = WebSettings(**{"port": 0, "grace": 5.0, "abandon": 0.3, "retry": 10.0, **settings})
        self.paused = threading.Event()
        """While set, jobs wait in the queue."""
        self._ending = threading.Event()
        self._web = LoopThread("web")
        self._stages = threading.Thread(target=self._draw, name="stages", daemon=True)
        self._stages.start()
        self._rpc_port = 0
        self.run(self._start_decoder())
        self.start_gateway()
        self.start()

    @property
    def jobs(self) -> list[JobSnapshot]:
        """The jobs of the gateway, the newest first."""
        return self.gateway.jobs.page(JobFilter(), after=None, limit=1000)

    def states(self) -> list[str]:
        """Returns the states of the jobs, the newest first."""
        return [snapshot.job.state.value for snapshot in self.jobs]

    def client(self, **options: Any) -> httpx2.Client:
        """Returns a client of the service."""
        return httpx2.Client(**{"base_url": self.url, "timeout": LIMIT, **options})

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine in the event loop of the service."""
        return self._web.run(work)

    def start(self) -> None:
        """Starts the web service, on the port that it had before."""

        async def make() -> WebServer:
            return WebServer(self._settings, self.metrics, server=self.address)

        self.server = self.run(make())
        self.url = self.server.url
        self._settings = self._settings.model_copy(update={"port": int(self.url.rpartition(":")[2])})
        self._serving = self._web.begin(self.server.run())
        self.wait(lambda: self.server.ready or self._serving.done())

    def begin_stop(self) -> None:
        """Begins to drain the web service."""
        self._web.loop.call_soon_threadsafe(self.server.stop)

    def stop(self) -> None:
        """Drains and stops the web service."""
        self.begin_stop()
        self._serving.result(LIMIT)

    def restart(self, **settings: Any) -> None:
        """Stops the web service, and starts it with other settings."""
        self.stop()
        self._settings = self._settings.model_copy(update=settings)
        self.start()

    def start_gateway(self) -> None:
        """Serves the gateway, on the port that it had before."""
        self._rpc = self.run(self._serve_gateway())
        self.address = self._rpc.address
        self._rpc_port = self._rpc.port

    def stop_gateway(self) -> None:
        """Stops serving the gateway; its jobs stay."""
        self.run(self._rpc.stop(0))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Waits until a condition holds."""
        wait_until(condition, LIMIT)

    def clear(self) -> None:
        """Cancels and deletes all jobs."""
        for snapshot in self.jobs:
            self.gateway.delete(snapshot.job.id)

    def draw_rows(self, rows: int) -> list[GenerateTask]:
        """Sends what waits, and draws some rows of the first chunk of each job, while the stages are paused."""
        tasks: list[GenerateTask] = []
        for task in self.gateway.send():
            generates, encoded = self.gateway.stages.encode(task)
            self.gateway.handle(encoded)
            self.draw_more(generates, rows)
            tasks.extend(generates)
        return tasks

    def draw_more(self, tasks: Sequence[GenerateTask], rows: int) -> None:
        """Draws the first chunk up to a row."""
        first = range(1, rows + 1)
        self.gateway.handle(*(self.gateway.stages.draw_rows(tasks[0], row) for row in first))

    def finish(self, tasks: list[GenerateTask]) -> None:
        """Draws chunks to their end."""
        for task in tasks:
            self.gateway.handle(finish_chunk(self.gateway, task))

    def close(self) -> None:
        """Stops everything."""
        if not self._serving.done():
            self.stop()
        self._ending.set()
        self._stages.join(LIMIT)
        self.stop_gateway()
        self.run(self._end_decoder())
        self.run(_cancel_others())
        self._web.close()
        self.gateway.close()
        self._database.close()

    def _draw(self) -> None:
        while not self._ending.wait(PAUSE):
            if not self.paused.is_set():
                self.gateway.run_jobs()
                if self.batches is not None:
                    self.batches.greet()
                    self.batches.room.plan()
                    self.batches.run()
            self.gateway.gateway.run_store_tasks()

    async def _start_decoder(self) -> None:
        self._decoding = await serve(
            lambda server: add_DecoderServiceServicer_to_server(_Decoder(self._side), server),
            healthy=lambda: True,
            settings=ONCE,
        )
        self._channel = channel(self._decoding.address, ONCE)

    async def _end_decoder(self) -> None:
        await self._channel.close()
        await self._decoding.stop(0)

    async def _serve_gateway(self) -> Any:
        servicer = ImageServicer(self.gateway.gateway, DecoderServiceStub(self._channel))

        self.gateway.gateway.batches.planner.edit_tokens = EditTokens(
            self.gateway.gateway, servicer.images, asyncio.get_running_loop()
        )

        def register(server: Any) -> None:
            add_ImageServiceServicer_to_server(servicer, server)
            add_FileServiceServicer_to_server(FileServicer(self.gateway.gateway), server)
            add_BatchServiceServicer_to_server(BatchServicer(self.gateway.gateway), server)

        # Its streams end at once when it stops, as those of a process that is killed.
        settings = ONCE.model_copy(update={"port": self._rpc_port})
        return await serve(
            register,
            healthy=lambda: True,
            settings=settings,
            kinds=KINDS,
            authenticate=self.gateway.gatekeeper(*self._auth),
        )


async def _cancel_others() -> None:
    """Cancels what libraries have left running in the event loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
