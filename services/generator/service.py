"""Builds the generator service."""

import grpc
import jax

from smalti.compilation import use_compilation_cache
from smalti.engines.encoder import unconditional_encoding
from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch, DecodeBatch
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
from smalti.services.generator.group import Follower, Leader, LeadingBatch, common_values, end_process
from smalti.services.generator.handler import GenerateHandler
from smalti.services.generator.servicer import GeneratorServicer
from smalti.services.generator.settings import GroupSettings, group_settings
from smalti.services.generator.shard_handler import GenerateShardHandler
from smalti.v1 import engine_pb2
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from smalti.v1.generator_pb2_grpc import add_GeneratorServiceServicer_to_server


def build(process: Process) -> Service:
    """Loads the model, compiles, and makes the service."""
    settings, group = process.settings, group_settings()
    spec = ModelSpec.load(library.find())
    if group.index:
        return _build_follower(process, spec, group)
    leader = Leader.gather(group, common_values(spec, settings, group)) if group.size > 1 else None
    use_compilation_cache()
    unconditional = unconditional_encoding(spec)
    if leader is not None:
        leader.begin(unconditional)
    batch: Batch = DecodeBatch.load(spec, unconditional, slots=settings.slots)
    engine = GeneratorEngine(
        batch if leader is None else LeadingBatch(batch, leader),
        max_waiting=settings.waiting or DEFAULT_MAX_WAITING,
        stall_seconds=settings.stall,
    )
    if leader is not None:
        leader.watch(engine.fail)
    engine.observer = process.telemetry.engine_observer
    engine.start()
    while not engine.ready.wait(0.1):
        if not engine.healthy:
            problem = f"the generator cannot be compiled: {engine.failure!r}"
            if leader is not None:
                end_process(problem)
            raise ModelError(problem)
    if failpoints.is_armed(STEP) or failpoints.is_armed(REQUEST):
        engine.batch = FailingBatch(engine.batch)
    model = model_message(spec)
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = GenerateHandler(process=process, spec=spec, cancellations=cancellations, engine=engine)
    shards = GenerateShardHandler(process=process, spec=spec, cancellations=cancellations, engine=engine)
    handler = HandlerByKind(jobs, shards)

    device = jax.devices()[0].device_kind
    process.report["device"] = device
    if leader is not None:
        process.report["group"] = f"process 0 of {group.size}, which leads"
    serving = Serving.of(Stage.GENERATE, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = GeneratorServicer(engine=engine, spec=spec, model=model.reference)
        add_GeneratorServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_GENERATE, model=model, engine=engine, device=device)
        add_EngineServiceServicer_to_server(described, server)

    def close() -> None:
        handler.close()
        if leader is not None:
            leader.end()

    return Service(
        register=register,
        handler=handler,
        concurrency=settings.concurrency or settings.slots // 4 + 2,
        model=spec.folder.name,
        engine=engine,
        serving=serving,
        asked_to_stop=lambda: leader is not None and leader.stopping,
        close=close,
    )


def _build_follower(process: Process, spec: ModelSpec, group: GroupSettings) -> Service:
    """Joins a group, and makes the service of a process that takes neither calls nor messages."""

    def make_batch(unconditional: Encoding) -> Batch:
        use_compilation_cache()
        return DecodeBatch.load(spec, unconditional, slots=process.settings.slots)

    follower = Follower.join(group, common_values(spec, process.settings, group), make_batch)
    while not follower.ready.wait(0.1):
        if not follower.healthy:
            end_process(f"the generator cannot follow: {follower.failure!r}")
    process.report["device"] = jax.local_devices()[0].device_kind
    process.report["group"] = f"process {group.index} of {group.size}, which follows"
    return Service(
        register=lambda server: None,
        model=spec.folder.name,
        engine=follower,
        background_tasks=(follower,),
        asked_to_stop=lambda: follower.ended,
        close=follower.leave,
    )
