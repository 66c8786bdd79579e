"""RefinerService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.engines.refiner import RefinerEngine, RefinerInput
from smalti.errors import InvalidInputError
from smalti.messages import MAX_CANDIDATES, MAX_IN_CHUNK
from smalti.parameters import SecondPass, check_seed
from smalti.pictures import receive_image
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import (
    check_asked_model,
    check_refiner,
    encoding_of,
    given_tokens,
    image_message,
    second_pass_of,
)
from smalti.service.checks import check_count
from smalti.service.compute import ComputeThread
from smalti.v1 import model_pb2, refiner_pb2_grpc
from smalti.v1.refiner_pb2 import PictureToRefine, RefineRequest, RefineResponse


class RefinerServicer(refiner_pb2_grpc.RefinerServiceServicer):
    """Refines the pictures of gRPC calls."""

    def __init__(
        self,
        *,
        engine: RefinerEngine,
        compute: ComputeThread,
        spec: ModelSpec,
        model: model_pb2.ModelReference,
    ) -> None:
        """Serves a loaded engine.

        Args:
            engine: the refiner.
            compute: the thread in which the refiner runs.
            spec: the sizes of the loaded model.
            model: the loaded model.
        """
        self._engine = engine
        self._compute = compute
        self._spec = spec
        self._model = model

    async def Refine(  # noqa: D102, N802
        self, request: RefineRequest, context: Any
    ) -> AsyncIterator[RefineResponse]:
        check_asked_model(request.model, self._model)
        check_count(len(request.pictures), MAX_IN_CHUNK, field="pictures", noun="pictures")
        seed = check_seed(request.seed)
        second_pass = second_pass_of(request, self._spec.trained_upscale) or SecondPass()
        check_refiner(request, self._spec.refiner_revision)
        encoding = self._encoding(request) if second_pass.refine else None
        with self._compute.permit():
            # All are read before the first is refined, so that a damaged picture is reported at once.
            pictures = [
                await self._read(picture, encoding, f"pictures[{index}]")
                for index, picture in enumerate(request.pictures)
            ]
            step = self._engine.batch_size
            # One batch of the program at a time, so that other calls get their turn in between.
            for start in range(0, len(pictures), step):
                batch = pictures[start : start + step]
                refining = self._compute.submit(
                    lambda batch=batch: self._engine.run(batch, second_pass, seed)  # type: ignore[misc]
                )
                refined = await asyncio.wrap_future(refining)
                for index, pixels in enumerate(refined, start):
                    image = await asyncio.to_thread(image_message, Image.fromarray(pixels))
                    yield RefineResponse(index=index, image=image)

    def _encoding(self, request: RefineRequest) -> Encoding:
        if not request.HasField("encoding"):
            raise InvalidInputError("encoding", "is missing; refine needs the encoding of the prompt")
        config = self._spec.transformer
        encoding = encoding_of(request.encoding, self._model, config.d_model)
        if len(encoding.mask) != config.max_text_length:
            raise InvalidInputError(
                "encoding.states.shape",
                f"must have {config.max_text_length} positions, got {len(encoding.mask)}",
            )
        return encoding

    async def _read(self, picture: PictureToRefine, encoding: Encoding | None, field: str) -> RefinerInput:
        if not 0 <= picture.candidate < MAX_CANDIDATES:
            raise InvalidInputError(
                f"{field}.candidate", f"must be between 0 and {MAX_CANDIDATES - 1}, got {picture.candidate}"
            )
        tokens = None
        if encoding is not None:
            spec = self._spec
            given = given_tokens(
                picture.tokens, spec.tokens, spec.codebook_size, field=f"{field}.tokens", whole=True
            )
            tokens = np.array(given, np.int32)
        image = await receive_image(picture.image, f"{field}.image", self._spec.resolution)
        return RefinerInput(
            pixels=np.asarray(image), candidate=picture.candidate, tokens=tokens, encoding=encoding
        )
