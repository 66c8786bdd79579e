"""Builds the refiner service."""

from functools import partial

import grpc
import numpy as np

from smalti.engines.encoding import Encoding
from smalti.engines.refiner import RefinerEngine, RefinerInput
from smalti.messages import Stage
from smalti.parameters import Refinement, SecondPass
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.service import Process, Service
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.engine_service import EngineServicer
from smalti.service.model import model_message
from smalti.service.serving import Serving
from smalti.service.shards import HandlerByKind
from smalti.services.refiner.handler import RefineHandler
from smalti.services.refiner.servicer import RefinerServicer
from smalti.services.refiner.shard_handler import RefineShardHandler
from smalti.v1 import engine_pb2
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from smalti.v1.refiner_pb2_grpc import add_RefinerServiceServicer_to_server

CONCURRENCY = 2
"""Chunks at the same time: while one is refined, the other is read or written."""
MAX_CALLS = 64


def build(process: Process) -> Service:
    """Loads the refiner, if the model has one, and makes the service."""
    settings = process.settings
    spec = ModelSpec.load(library.find())
    device = _prepare_device() if spec.refiner else "cpu"
    process.report["device"] = device
    engine = RefinerEngine.load(spec)
    _warm_up(engine, spec)
    model = model_message(spec)
    compute = ComputeThread(
        max_permits=settings.waiting or MAX_CALLS,
        stall_seconds=settings.stall,
        check=partial(_warm_up, engine, spec),
    )
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = RefineHandler(
        process=process, spec=spec, cancellations=cancellations, engine=engine, compute=compute
    )
    shards = RefineShardHandler(
        process=process, spec=spec, cancellations=cancellations, engine=engine, compute=compute
    )
    handler = HandlerByKind(jobs, shards)
    serving = Serving.of(Stage.REFINE, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = RefinerServicer(engine=engine, compute=compute, spec=spec, model=model.reference)
        add_RefinerServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_REFINE, model=model, engine=compute, device=device)
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


def _prepare_device() -> str:
    """Prepares JAX, which only a refiner with a network needs; returns the kind of its device."""
    import jax

    from smalti.compilation import use_compilation_cache

    use_compilation_cache()
    return str(jax.devices()[0].device_kind)


def _warm_up(engine: RefinerEngine, spec: ModelSpec) -> None:
    """Compiles the program for the enlargement that the refiner was trained for."""
    if spec.trained_upscale is None:
        return
    config = spec.transformer
    states = np.zeros((config.max_text_length, config.d_model), np.float32)
    picture = RefinerInput(
        pixels=np.zeros((spec.resolution, spec.resolution, 3), np.uint8),
        tokens=np.zeros(spec.tokens, np.int32),
        encoding=Encoding(states, np.ones(config.max_text_length, np.int32)),
    )
    engine.run([picture], SecondPass(upscale=spec.trained_upscale, refine=Refinement(steps=1)), seed=0)  # type: ignore[arg-type]
