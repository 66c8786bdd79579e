"""A gRPC server for tests of the shell of servers, which does what the prompt asks for."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from typing_extensions import ParamSpec

from smalti.rpc.calls import deadline
from smalti.rpc.identity import Authenticate
from smalti.rpc.places import CallKinds
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
    """Turns a coroutine into a test with a time limit of a minute."""

    @functools.wraps(test)
    def run(*arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


class Servicer(EncoderServiceServicer, GeneratorServiceServicer):
    """Answers, waits or fails as a test sets it."""

    def __init__(self) -> None:
        """Starts healthy, with no errors to raise."""
        self.healthy = True
        self.error: BaseException | None = None
        """Raised by every call, unless it is None."""
        self.failures: list[BaseException] = []
        """Raised by the next calls, one each, before anything else."""
        self.calls = 0
        """The number of calls that have started."""
        self.begun = asyncio.Event()
        """Set once a call has started."""
        self.go_on = asyncio.Event()
        """Awaited by a call for the prompt "wait", and by a stream after its first message."""
        self.cancelled = 0
        """The number of calls that were cancelled while they waited."""
        self.seconds = 0.0
        """The time to the deadline when the last call started."""

    async def Encode(self, request: EncodeRequest, context: Any) -> EncodeResponse:  # noqa: N802
        """Returns the prompt as its own reading."""
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
    kept: tuple[str, ...] = (),
    small: tuple[str, ...] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    authenticate: Authenticate | None = None,
) -> AsyncIterator[tuple[Server, Servicer]]:
    """Serves the servicer on a free port of 127.0.0.1 while the block runs."""
    servicer = Servicer()

    def register(server: grpc.aio.Server) -> None:
        add_EncoderServiceServicer_to_server(servicer, server)
        add_GeneratorServiceServicer_to_server(servicer, server)

    server = await serve(
        register,
        healthy=lambda: servicer.healthy,
        settings=settings or RpcSettings(),
        kinds=CallKinds(endless=endless, kept=kept, small=small),
        interceptors=interceptors,
        authenticate=authenticate,
    )
    try:
        yield server, servicer
    finally:
        await server.stop(0)
