"""Builds the gateway's service."""

import asyncio
import socket
from contextlib import suppress

import grpc

from smalti.errors import DatabaseUnavailableError, InvalidInputError, UnavailableError
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import channel
from smalti.service import Process, Service
from smalti.services.gateway.api.batches import BatchServicer, EditTokens
from smalti.services.gateway.api.file_servicer import FileServicer
from smalti.services.gateway.api.kinds import KINDS
from smalti.services.gateway.api.servicer import ImageServicer
from smalti.services.gateway.database.clock import DatabaseClock
from smalti.services.gateway.database.connection import Database, describe
from smalti.services.gateway.database.opening import migrate_when_ready, wait_until_migrated
from smalti.services.gateway.database.presence import Presence
from smalti.services.gateway.database.rows import RowFeed
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.identity import Evidence, Gatekeeper, KeyRepository
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.metrics import BatchMetrics, JobMetrics, gauges
from smalti.services.gateway.models import Catalogue, ModelCard
from smalti.services.gateway.policy.content_policy import ContentPolicy
from smalti.services.gateway.settings import GATEWAY_PREFIX, gateway_settings
from smalti.services.gateway.webhooks import webhook_settings
from smalti.storage import store_settings
from smalti.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from smalti.v1.decoder_pb2_grpc import DecoderServiceStub
from smalti.v1.file_pb2_grpc import add_FileServiceServicer_to_server
from smalti.v1.image_pb2_grpc import add_ImageServiceServicer_to_server

DATABASE_SECONDS = 120.0
"""Time within which the database must answer, and must be migrated by this gateway or another, at the start."""


class GatewayRunner:
    """A `smalti.service.BackgroundTask` that runs the gateway's threads, and polls for changes by other gateways."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._polling: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:  # noqa: D102
        return self._gateway.healthy and (self._polling is None or not self._polling.done())

    async def start(self) -> None:  # noqa: D102
        gateway = self._gateway
        gateway.start()
        self._polling = asyncio.create_task(
            gateway.watchers.poll(
                gateway.versions, gateway.context.settings.watch, lambda: gateway.context.listening
            )
        )

    async def stop(self, grace: float) -> None:  # noqa: D102
        if self._polling is not None:
            self._polling.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._gateway.stop)


def build(process: Process) -> Service:
    """Opens the database and builds the service.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
        DatabaseUnavailableError: the database does not answer; names the variable.
    """
    settings = gateway_settings()
    evidence = Evidence.load(settings, process.rpc)
    policy = ContentPolicy.load(settings, process.rpc)
    card = ModelCard.from_spec(ModelSpec.load(library.find()))
    metrics = process.telemetry.metrics
    database = Database(
        settings.database.get_secret_value(),
        timeout=settings.database_timeout,
        observe=lambda op, seconds: metrics.observe("database_seconds", seconds, op=op),
    )
    try:
        prepare = migrate_when_ready if settings.migrate else wait_until_migrated
        process.report["database"] = prepare(database, DATABASE_SECONDS)
        clock = DatabaseClock(database.time)
    except DatabaseUnavailableError as error:
        cause = describe(error.__cause__ or error)  # It is the operator who reads this.
        raise DatabaseUnavailableError(f"{GATEWAY_PREFIX}DATABASE: {error}: {cause}") from None
    presence = Presence(database, address=f"{socket.gethostname()}:{process.rpc.port}")
    context = GatewayContext(
        database=database,
        store=process.store,
        publisher=process.publisher,
        catalogue=Catalogue(database, card, clock=clock, write=process.messages.write),
        settings=settings,
        policy=policy,
        webhooks=webhook_settings(),
        clock=clock,
        presence=presence,
        rows=None if database.is_sqlite else RowFeed(process.broker, presence),
        expiry_days=store_settings().expiry_days,
    )
    with suppress(UnavailableError):
        context.catalogue.refresh()  # So that the first call knows what can be drawn.
    gateway = Gateway(context)
    job_metrics = JobMetrics(metrics)
    context.events.subscribe(job_metrics)
    BatchMetrics(metrics, gateway.batches.signals)
    policy.count = job_metrics.policy_answered
    for name, read in gauges(context).items():
        process.telemetry.watch(name, read)

    gatekeeper = Gatekeeper(
        evidence,
        keys=KeyRepository(database, clock),
        threads=gateway.threads,
        seconds=settings.database_timeout,
    )

    def register(server: grpc.aio.Server) -> None:
        decoder = None
        if settings.decoder:
            decoder = DecoderServiceStub(_channel(settings.decoder, process))
        servicer = ImageServicer(
            gateway, decoder, connect=lambda address: DecoderServiceStub(_channel(address, process))
        )
        gateway.batches.planner.edit_tokens = EditTokens(gateway, servicer.images, asyncio.get_running_loop())
        add_ImageServiceServicer_to_server(servicer, server)
        add_FileServiceServicer_to_server(FileServicer(gateway), server)
        add_BatchServiceServicer_to_server(BatchServicer(gateway), server)

    return Service(
        register=register,
        handler=gateway.events.handle,
        hear=gateway.hellos.add,
        concurrency=settings.concurrency,
        model=card.name,
        background_tasks=(GatewayRunner(gateway),),
        ready=lambda: gateway.ready,
        kinds=KINDS,
        authenticate=gatekeeper,
        close=gateway.close,
    )


def _channel(decoder: str, process: Process) -> grpc.aio.Channel:
    """Opens a channel to the decoder; raises `InvalidInputError` if its address is invalid."""
    try:
        return channel(decoder, process.rpc, interceptors=process.telemetry.client_interceptors)
    except InvalidInputError as error:
        if error.field != "server":
            raise
        raise InvalidInputError(f"{GATEWAY_PREFIX}DECODER", error.problem) from None
