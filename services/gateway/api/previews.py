"""Pictures that are not finished: the rows that are drawn, decoded, and grey below."""

import asyncio
import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from PIL import Image

from smalti.pictures import plain_png_bytes
from smalti.registry.spec import ModelSpec
from smalti.rpc.errors import translated
from smalti.services.gateway.jobs.hub import PreviewTokens
from smalti.v1.decoder_pb2 import DecodeRequest, EncodedImage
from smalti.v1.image_pb2 import Preview
from smalti.v1.tokens_pb2 import ImageTokens

if TYPE_CHECKING:
    from smalti.v1.decoder_pb2_grpc import DecoderServiceAsyncStub

log = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 16
"""Candidates of which previews are made in one go."""
CALLS: Final = 2
"""Calls of the decoder at the same time: previews must not keep it from its work."""
GREY: Final = (128, 128, 128)
CALL_SECONDS: Final = 30.0


class Previews:
    """Makes previews; belongs to the event loop."""

    def __init__(self, canvases: PreviewTokens, spec: ModelSpec, decoder: "DecoderServiceAsyncStub") -> None:
        """Takes what it works with.

        Args:
            canvases: the rows that are drawn.
            spec: the model.
            decoder: decodes them.
        """
        self._canvases = canvases
        self._spec = spec
        self._decoder = decoder
        self._places = asyncio.Semaphore(CALLS)

    async def of(self, job_id: str, given: Sequence[int], shown: Mapping[int, int]) -> list[Preview]:
        """Makes previews of the candidates of a job that have more rows than were shown.

        Args:
            job_id: the job.
            given: the tokens of the rows that are kept of an initial picture.
            shown: the rows that were shown of each candidate.

        Returns:
            At most `MAX_AT_ONCE`; none where there is nothing new, or no time for it.

        Raises:
            UnavailableError: the decoder does not answer.
        """
        drawn = {
            candidate: tokens
            for candidate, tokens in self._drawn(job_id, given).items()
            if len(tokens) // self._spec.side > shown.get(candidate, 0)
        }
        # Those first of which least was shown.
        chosen = sorted(drawn, key=lambda candidate: (shown.get(candidate, 0), candidate))[:MAX_AT_ONCE]
        if not chosen or self._places.locked():
            return []
        missing = {candidate: self._spec.tokens - len(drawn[candidate]) for candidate in chosen}
        request = DecodeRequest(
            pictures=[
                ImageTokens(tokens=[*drawn[candidate], *[0] * missing[candidate]]) for candidate in chosen
            ]
        )
        previews = []
        async with self._places:
            with translated():
                async for response in self._decoder.Decode(request, timeout=CALL_SECONDS):
                    candidate = chosen[response.index]
                    rows = len(drawn[candidate]) // self._spec.side
                    image = await asyncio.to_thread(self._grey, response.image.data, rows)
                    previews.append(Preview(candidate=candidate, rows_drawn=rows, image=image))
        return previews

    def _drawn(self, job_id: str, given: Sequence[int]) -> dict[int, list[int]]:
        """Returns the whole rows of each candidate that follow each other from the top."""
        drawn: dict[int, list[int]] = {}
        for candidate, start, tokens in self._canvases.runs(job_id):
            laid = drawn.setdefault(candidate, list(given))
            if start <= len(laid):
                laid[start:] = tokens
        return {
            candidate: laid[: len(laid) // self._spec.side * self._spec.side]
            for candidate, laid in drawn.items()
        }

    def _grey(self, content: bytes, rows: int) -> EncodedImage:
        """Covers what is not drawn."""
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            image = opened.convert("RGB")
        image.paste(GREY, (0, image.height * rows // self._spec.side, image.width, image.height))
        return EncodedImage(
            data=plain_png_bytes(image), media_type="image/png", width=image.width, height=image.height
        )
