"""EncoderService over gRPC."""

import asyncio
from typing import Any

from smalti.engines.encoder import EncoderEngine
from smalti.engines.encoding import Encoding
from smalti.errors import InvalidInputError
from smalti.rpc.conversion import check_asked_model, encoding_message
from smalti.service.checks import checked_prompt
from smalti.service.compute import ComputeThread
from smalti.text.rewording import Rewording, Rewriter
from smalti.v1 import encoder_pb2_grpc, model_pb2
from smalti.v1.encoder_pb2 import EncodeRequest, EncodeResponse


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Encodes the prompts of gRPC calls."""

    def __init__(
        self,
        *,
        engine: EncoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
        model: model_pb2.ModelReference,
    ) -> None:
        """Serves a loaded engine.

        Args:
            engine: the encoder.
            compute: the thread in which the encoder runs.
            rewriter: rewrites prompts in words that the model knows.
            model: the loaded model.
        """
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter
        self._model = model

    async def Encode(self, request: EncodeRequest, context: Any) -> EncodeResponse:  # noqa: D102, N802
        check_asked_model(request.model, self._model)
        match request.WhichOneof("text"):
            case "prompt":
                rewording = self._rewriter(checked_prompt(request.prompt))
            case "unconditional":
                rewording = Rewording("")
            case _:
                raise InvalidInputError("prompt", "is missing; set prompt or unconditional")

        def encode() -> Encoding:
            if request.WhichOneof("text") == "unconditional":
                return self._engine.unconditional
            return self._engine.encode(rewording.prompt)

        with self._compute.permit():
            encoding = await asyncio.wrap_future(self._compute.submit(encode))
        return EncodeResponse(encoding=encoding_message(encoding, self._model, rewording))
