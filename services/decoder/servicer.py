"""DecoderService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.errors import NotSupportedError
from smalti.messages import MAX_IN_CHUNK, Stage
from smalti.pictures import receive_image
from smalti.registry.routes import route_keys
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import check_asked_part, image_message, tokens_message, tokens_of
from smalti.service.checks import check_count
from smalti.service.compute import ComputeThread
from smalti.v1 import decoder_pb2_grpc, model_pb2
from smalti.v1.decoder_pb2 import (
    DecodeRequest,
    DecodeResponse,
    EncodeImagesRequest,
    EncodeImagesResponse,
)

MAX_IMAGES = 16


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Decodes tokens and encodes images for gRPC calls."""

    def __init__(
        self,
        *,
        engine: DecoderEngine,
        compute: ComputeThread,
        spec: ModelSpec,
        model: model_pb2.ModelReference,
    ) -> None:
        """Serves a loaded engine.

        Args:
            engine: the decoder.
            compute: the thread in which the decoder runs.
            spec: the sizes of the loaded model.
            model: the loaded model.
        """
        self._engine = engine
        self._compute = compute
        self._spec = spec
        self._model = model
        self._key = route_keys(spec.folder)[Stage.DECODE]

    async def Decode(  # noqa: D102, N802
        self, request: DecodeRequest, context: Any
    ) -> AsyncIterator[DecodeResponse]:
        check_asked_part(request, self._model, self._key)
        check_count(len(request.pictures), MAX_IN_CHUNK, field="pictures", noun="pictures")
        spec, step = self._spec, self._engine.batch_size
        tokens = tokens_of(request.pictures, spec.tokens, spec.vqgan.n_embed, field="pictures")
        with self._compute.permit():
            # One batch of the program at a time, so that other calls get their turn in between.
            for start in range(0, len(tokens), step):
                batch = tokens[start : start + step]
                decoding = self._compute.submit(lambda batch=batch: self._engine.decode(batch))  # type: ignore[misc]
                pictures = await asyncio.wrap_future(decoding)
                for index, pixels in enumerate(pictures, start):
                    image = await asyncio.to_thread(image_message, Image.fromarray(pixels))
                    yield DecodeResponse(index=index, image=image)

    async def EncodeImages(  # noqa: D102, N802
        self, request: EncodeImagesRequest, context: Any
    ) -> EncodeImagesResponse:
        check_asked_part(request, self._model, self._key)
        if not self._engine.vqgan.has_encoder:
            raise NotSupportedError("the model's VQGAN has no encoder, so it cannot encode images")
        check_count(len(request.images), MAX_IMAGES, field="images", noun="pictures")
        with self._compute.permit():
            # All are read before the first is encoded, so that a damaged picture is reported at once.
            pictures = [
                np.asarray(await receive_image(content, f"images[{index}]", self._spec.resolution))
                for index, content in enumerate(request.images)
            ]
            encoding = self._compute.submit(lambda: self._engine.encode(np.stack(pictures)))
            tokens = await asyncio.wrap_future(encoding)
        return EncodeImagesResponse(pictures=[tokens_message(row) for row in tokens])
