"""Builds the encoder service."""

import grpc
import jax

from smalti.compilation import use_compilation_cache
from smalti.engines.encoder import EncoderEngine
from smalti.messages import Stage
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.service import Process, Service
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.engine_service import EngineServicer
from smalti.service.model import model_message
from smalti.service.serving import Serving
from smalti.service.shards import HandlerByKind
from smalti.services.encoder.handler import EncodeHandler
from smalti.services.encoder.servicer import EncoderServicer
from smalti.services.encoder.shard_handler import EncodeShardHandler
from smalti.text.rewording import Rewriter
from smalti.v1 import engine_pb2
from smalti.v1.encoder_pb2_grpc import add_EncoderServiceServicer_to_server
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server

CONCURRENCY = 4
"""Messages at the same time: while one is computed, the others are read and written."""
MAX_CALLS = 64


def build(process: Process) -> Service:
    """Loads the model and makes the service."""
    use_compilation_cache()
    settings = process.settings
    spec = ModelSpec.load(library.find())
    rewriter = Rewriter.load(spec.folder.words_file)
    engine = EncoderEngine.load(spec)
    engine.unconditional  # noqa: B018 - The first encoding compiles the program.
    model = model_message(spec)
    compute = ComputeThread(
        max_permits=settings.waiting or MAX_CALLS,
        stall_seconds=settings.stall,
        check=lambda: engine.encode(""),
    )
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = EncodeHandler(
        process=process,
        folder=spec.folder,
        cancellations=cancellations,
        engine=engine,
        compute=compute,
        rewriter=rewriter,
    )
    shards = EncodeShardHandler(
        process=process,
        folder=spec.folder,
        cancellations=cancellations,
        engine=engine,
        compute=compute,
        rewriter=rewriter,
    )
    handler = HandlerByKind(jobs, shards)

    device = jax.devices()[0].device_kind
    process.report["device"] = device
    serving = Serving.of(Stage.ENCODE, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = EncoderServicer(engine=engine, compute=compute, rewriter=rewriter, model=model.reference)
        add_EncoderServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_ENCODE, model=model, engine=compute, device=device)
        add_EngineServiceServicer_to_server(described, server)

    return Service(
        register=register,
        handler=handler,
        concurrency=settings.concurrency or CONCURRENCY,
        model=spec.folder.name,
        engine=compute,
        serving=serving,
        close=handler.close,
    )
