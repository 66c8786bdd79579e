"""Builds the generator service."""

import grpc
import jax

from smalti.compilation import use_compilation_cache
from smalti.engines.encoder import unconditional_encoding
from smalti.engines.generator.engine import DEFAULT_MAX_WAITING, GeneratorEngine
from smalti.errors import ModelError
from smalti.messages import Stage
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.service import Process, Service, failpoints
from smalti.service.cancellation import Cancellations
from smalti.service.engine_service import EngineServicer
from smalti.service.model import model_message
from smalti.service.serving import Serving
from smalti.service.shards import HandlerByKind
from smalti.services.generator.failing_batch import REQUEST, STEP, FailingBatch
from smalti.services.generator.handler import GenerateHandler
from smalti.services.generator.servicer import GeneratorServicer
from smalti.services.generator.shard_handler import GenerateShardHandler
from smalti.v1 import engine_pb2
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from smalti.v1.generator_pb2_grpc import add_GeneratorServiceServicer_to_server


def build(process: Process) -> Service:
    """Loads the model, compiles, and makes the service."""
    use_compilation_cache()
    settings = process.settings
    spec = ModelSpec.load(library.find())
    engine = GeneratorEngine.load(
        spec,
        unconditional_encoding(spec),
        slots=settings.slots,
        max_waiting=settings.waiting or DEFAULT_MAX_WAITING,
        stall_seconds=settings.stall,
    )
    engine.observer = process.telemetry.engine_observer
    engine.start()
    while not engine.ready.wait(0.1):
        if not engine.healthy:
            raise ModelError(f"the generator cannot be compiled: {engine.failure!r}")
    if failpoints.is_armed(STEP) or failpoints.is_armed(REQUEST):
        engine.batch = FailingBatch(engine.batch)
    model = model_message(spec)
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = GenerateHandler(process=process, spec=spec, cancellations=cancellations, engine=engine)
    shards = GenerateShardHandler(process=process, spec=spec, cancellations=cancellations, engine=engine)
    handler = HandlerByKind(jobs, shards)

    device = jax.devices()[0].device_kind
    process.report["device"] = device
    serving = Serving.of(Stage.GENERATE, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = GeneratorServicer(engine=engine, spec=spec, model=model.reference)
        add_GeneratorServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_GENERATE, model=model, engine=engine, device=device)
        add_EngineServiceServicer_to_server(described, server)

    return Service(
        register=register,
        handler=handler,
        concurrency=settings.concurrency or settings.slots // 4 + 2,
        model=spec.folder.name,
        engine=engine,
        serving=serving,
        close=handler.close,
    )
