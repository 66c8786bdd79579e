"""Builds the decoder service."""

from functools import partial

import grpc
import jax
import numpy as np

from smalti.compilation import use_compilation_cache
from smalti.engines.decoder import DecoderEngine
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
from smalti.services.decoder.handler import DecodeHandler
from smalti.services.decoder.servicer import DecoderServicer
from smalti.services.decoder.shard_handler import DecodeShardHandler
from smalti.text.rewording import Rewriter
from smalti.v1 import engine_pb2
from smalti.v1.decoder_pb2_grpc import add_DecoderServiceServicer_to_server
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server

CONCURRENCY = 2
"""Chunks at the same time: while one is decoded, the other is read or written. More would only wait here, out of reach
of other decoders."""
MAX_CALLS = 64


def build(process: Process) -> Service:
    """Loads the model, compiles, and makes the service."""
    use_compilation_cache()
    settings = process.settings
    spec = ModelSpec.load(library.find())
    rewriter = Rewriter.load(spec.folder.words_file)
    engine = DecoderEngine.load(spec)
    _warm_up(engine, spec)
    model = model_message(spec)
    compute = ComputeThread(
        max_permits=settings.waiting or MAX_CALLS,
        stall_seconds=settings.stall,
        check=partial(_warm_up, engine, spec),
    )
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = DecodeHandler(
        process=process,
        spec=spec,
        cancellations=cancellations,
        engine=engine,
        compute=compute,
        rewriter=rewriter,
    )
    shards = DecodeShardHandler(
        process=process, spec=spec, cancellations=cancellations, engine=engine, compute=compute
    )
    handler = HandlerByKind(jobs, shards)

    device = jax.devices()[0].device_kind
    process.report["device"] = device
    serving = Serving.of(Stage.DECODE, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = DecoderServicer(engine=engine, compute=compute, spec=spec, model=model.reference)
        add_DecoderServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_DECODE, model=model, engine=compute, device=device)
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


def _warm_up(engine: DecoderEngine, spec: ModelSpec) -> None:
    """Compiles both programs, so that the first calls need not wait for them."""
    pictures = engine.decode(np.zeros((1, spec.tokens), np.int32))
    if engine.vqgan.has_encoder:
        engine.encode(pictures)
