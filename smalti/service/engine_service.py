"""EngineService: describes the engine of a service and its load."""

from typing import Any

from smalti import __version__
from smalti.errors import EngineFailedError
from smalti.service.engine import Engine
from smalti.v1 import engine_pb2, engine_pb2_grpc, model_pb2


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Describes an engine."""

    def __init__(
        self, *, stage: engine_pb2.Stage.ValueType, model: model_pb2.Model, engine: Engine, device: str
    ) -> None:
        """Describes an engine that is loaded.

        Args:
            stage: the stage of the engine.
            model: the loaded model.
            engine: provides the current load.
            device: the kind of device that the engine computes on, such as "cpu".
        """
        self._stage = stage
        self._model = model
        self._engine = engine
        self._device = device

    async def GetEngine(  # noqa: D102, N802
        self, request: engine_pb2.GetEngineRequest, context: Any
    ) -> engine_pb2.GetEngineResponse:
        if not self._engine.healthy:
            raise EngineFailedError("the engine has stopped")
        return engine_pb2.GetEngineResponse(
            engine=engine_pb2.Engine(
                stage=self._stage,
                model=self._model,
                version=__version__,
                device=self._device,
                slots=self._engine.slots,
                active=self._engine.active,
                waiting=self._engine.waiting,
            )
        )
