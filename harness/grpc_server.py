"""A gRPC server for tests of what servers share: it does what the prompt asks."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from typing_extensions import ParamSpec

from smalti.rpc.calls import deadline
from smalti.rpc.server import Server, serve
from smalti.rpc.settings import RpcSettings
from smalti.v1.encoder_pb2 import EncodeRequest, EncodeResponse, Encoding
from smalti.v1.encoder_pb2_grpc import EncoderServiceServicer, add_EncoderServiceServicer_to_server
from smalti.v1.generator_pb2 import GenerateRequest, GenerateResponse, RowsDrawn
from smalti.v1.generator_pb2_grpc import GeneratorServiceServicer, add_GeneratorServiceServicer_to_server
from smalti.v1.prompt_pb2 import PromptReading

ENCODER = "smalti.v1.EncoderService"
GENERATOR = "smalti.v1.GeneratorService"
GENERATE = f"/{GENERATOR}/Generate"

Parameters = ParamSpec("Parameters")


def asynchronous(
    test: Callable[Parameters, Coroutine[Any, Any, None]],
) -> Callable[Parameters, None]:
    """Makes a test of a coroutine; it has a minute, so that what hangs fails."""

    @functools.wraps(test)
    def run(*arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


class Servicer(EncoderServiceServicer, GeneratorServiceServicer):
    """Answers, waits or fails, as it is told."""

    def __init__(self) -> None:
        """Well, and with nothing to raise."""
        self.healthy = True
        self.error: BaseException | None = None
        """What every call raises."""
        self.failures: list[BaseException] = []
        """What the next calls raise, one each, before anything else."""
        self.calls = 0
        """Calls that have begun."""
        self.begun = asyncio.Event()
        """Set once a call has begun."""
        self.go_on = asyncio.Event()
        """What a call for the prompt "wait", and a stream after its first message, waits for."""
        self.cancelled = 0
        """Calls that were broken off while they waited."""
        self.seconds = 0.0
        """How long the last call had when it began."""

    async def Encode(self, request: EncodeRequest, context: Any) -> EncodeResponse:  # noqa: N802
        """Reads the prompt back."""
        await self._wait(request.prompt == "wait")
        return EncodeResponse(encoding=Encoding(reading=PromptReading(drawn=request.prompt)))

    async def Generate(  # noqa: N802
        self, request: GenerateRequest, context: Any
    ) -> AsyncIterator[GenerateResponse]:
        """Sends a message, waits, and sends another."""
        yield GenerateResponse(rows=RowsDrawn())
        await self._wait(True)
        yield GenerateResponse(rows=RowsDrawn())

    async def _wait(self, wait: bool) -> None:
        self.seconds = deadline() - asyncio.get_running_loop().time()
        self.calls += 1
        self.begun.set()
        if self.failures:
            raise self.failures.pop(0)
        if self.error is not None:
            raise self.error
        try:
            if wait:
                await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def served(
    settings: RpcSettings | None = None,
    *,
    endless: tuple[str, ...] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> AsyncIterator[tuple[Server, Servicer]]:
    """Serves the two services of the servicer on a free port of 127.0.0.1, and stops at once at the end."""
    servicer = Servicer()

    def register(server: grpc.aio.Server) -> None:
        add_EncoderServiceServicer_to_server(servicer, server)
        add_GeneratorServiceServicer_to_server(servicer, server)

    server = await serve(
        register,
        healthy=lambda: servicer.healthy,
        settings=settings or RpcSettings(),
        endless=endless,
        interceptors=interceptors,
    )
    try:
        yield server, servicer
    finally:
        await server.stop(0)
