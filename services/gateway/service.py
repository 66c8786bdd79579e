"""The gateway's parts, put together."""

import asyncio

import grpc

from smalti.errors import DatabaseUnavailableError, InvalidInputError
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import channel
from smalti.service import Process, Service
from smalti.services.gateway.api.servicer import ENDLESS, ImageServicer
from smalti.services.gateway.database.connection import Database, wait_for
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.gauges import gauges
from smalti.services.gateway.settings import GATEWAY_PREFIX, gateway_settings
from smalti.storage import store_settings
from smalti.v1.decoder_pb2_grpc import DecoderServiceStub
from smalti.v1.image_pb2_grpc import add_ImageServiceServicer_to_server

DATABASE_SECONDS = 30.0
"""How long a database may take to answer at the start."""


class Work:
    """What the gateway does besides answering: it sends, sweeps, and looks for what other gateways do."""

    def __init__(self, gateway: Gateway) -> None:
        """Begins with `start`."""
        self._gateway = gateway
        self._looking: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """See `smalti.service.BackgroundTask`."""
        return self._gateway.healthy and (self._looking is None or not self._looking.done())

    async def start(self) -> None:
        """See `smalti.service.BackgroundTask`."""
        gateway = self._gateway
        gateway.start()
        self._looking = asyncio.create_task(gateway.hub.look(gateway.jobs.versions, gateway.settings.watch))

    async def stop(self, grace: float) -> None:
        """See `smalti.service.BackgroundTask`."""
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._gateway.stop)


def build(process: Process) -> Service:
    """Opens the database and makes the service; see `smalti.service.Build`."""
    settings = gateway_settings()
    spec = ModelSpec.load(library.find())
    metrics = process.telemetry.metrics
    database = Database(
        settings.database.get_secret_value(),
        timeout=settings.database_timeout,
        observe=lambda op, seconds: metrics.observe("database_seconds", seconds, op=op),
    )
    try:
        wait_for(database, DATABASE_SECONDS)
    except DatabaseUnavailableError as error:
        raise InvalidInputError(f"{GATEWAY_PREFIX}DATABASE", str(error)) from None
    gateway = Gateway(
        database,
        process.store,
        process.publisher,
        spec,
        settings,
        metrics=metrics,
        expiry_days=store_settings().expiry_days,
    )
    for name, read in gauges(gateway).items():
        process.telemetry.watch(name, read)

    def register(server: grpc.aio.Server) -> None:
        decoder = None
        if settings.decoder:
            decoder = DecoderServiceStub(_channel(settings.decoder, process))
        add_ImageServiceServicer_to_server(ImageServicer(gateway, decoder), server)

    return Service(
        register=register,
        handler=gateway.events.handle,
        concurrency=settings.concurrency,
        model=spec.folder.name,
        companions=(Work(gateway),),
        endless=ENDLESS,
        close=gateway.close,
    )


def _channel(decoder: str, process: Process) -> grpc.aio.Channel:
    """Returns the way to the decoder; raises `InvalidInputError` when the setting of its address cannot be used."""
    try:
        return channel(decoder, process.rpc, interceptors=process.telemetry.client_interceptors)
    except InvalidInputError as error:
        if error.field != "server":
            raise
        raise InvalidInputError(f"{GATEWAY_PREFIX}DECODER", error.problem) from None
