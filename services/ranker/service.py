"""Builds the ranker service."""

import grpc
import torch
from PIL import Image

from smalti.engines.ranker import RankerEngine
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
from smalti.services.ranker.handler import RankHandler
from smalti.services.ranker.servicer import RankerServicer
from smalti.services.ranker.shard_handler import RankShardHandler
from smalti.text.rewording import Rewriter
from smalti.v1 import engine_pb2
from smalti.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from smalti.v1.ranker_pb2_grpc import add_RankerServiceServicer_to_server

CONCURRENCY = 2
"""Chunks at the same time: while one is scored, the other is read or written."""
MAX_CALLS = 64


def build(process: Process) -> Service:
    """Loads the model and makes the service."""
    settings = process.settings
    spec = ModelSpec.load(library.find())
    rewriter = Rewriter.load(spec.folder.words_file)
    engine = RankerEngine.load(spec.folder)

    def warm_up() -> None:
        engine.rank("a picture", [Image.new("RGB", (spec.resolution, spec.resolution))])

    warm_up()
    model = model_message(spec)
    compute = ComputeThread(
        max_permits=settings.waiting or MAX_CALLS,
        stall_seconds=settings.stall,
        check=warm_up,
    )
    cancellations = Cancellations(process.store, settings.cancel_poll)
    jobs = RankHandler(
        process=process,
        folder=spec.folder,
        cancellations=cancellations,
        engine=engine,
        compute=compute,
        rewriter=rewriter,
    )
    shards = RankShardHandler(
        process=process, folder=spec.folder, cancellations=cancellations, engine=engine, compute=compute
    )
    handler = HandlerByKind(jobs, shards)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    serving = Serving.of(Stage.RANK, spec, device)

    def register(server: grpc.aio.Server) -> None:
        servicer = RankerServicer(engine=engine, compute=compute, model=model.reference, key=serving.key)
        add_RankerServiceServicer_to_server(servicer, server)
        described = EngineServicer(stage=engine_pb2.STAGE_RANK, model=model, engine=compute, device=device)
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
