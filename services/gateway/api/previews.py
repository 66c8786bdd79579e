"""Renders previews of unfinished pictures: the rows generated so far, and grey below."""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from PIL import Image

from smalti.policy import PicturesToCheck, PictureToCheck, Verdict
from smalti.rpc.conversion import image_message
from smalti.rpc.errors import translated
from smalti.services.gateway.api.decoders import Decoder
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs.reading import first_lease, parameter_of, pictures_to_check
from smalti.services.gateway.jobs.sizes import side_of
from smalti.services.gateway.jobs.watchers import PreviewTokens
from smalti.v1.decoder_pb2 import DecodeRequest, EncodedImage
from smalti.v1.image_pb2 import Preview
from smalti.v1.tokens_pb2 import ImageTokens

log = logging.getLogger(__name__)

MAX_PREVIEWS: Final = 16
"""Maximum number of candidates per call of the decoder."""
MAX_CALLS: Final = 2
"""Maximum number of calls of the decoder at the same time, so that finished pictures are not delayed."""
GREY: Final = (128, 128, 128)
CALL_SECONDS: Final = 30.0

CheckPreviews = Callable[[PicturesToCheck], Awaitable[Sequence[Verdict]]]
"""Asks the operator's policy about previews."""


class PreviewRenderer:
    """Renders previews. Only the event loop may use it."""

    def __init__(
        self,
        preview_tokens: PreviewTokens,
        decoder_of: Callable[[Job], Decoder | None],
        *,
        check: CheckPreviews | None = None,
        is_away: Callable[[], bool] = lambda: False,
    ) -> None:
        """Creates the renderer.

        Args:
            preview_tokens: the tokens of unfinished pictures.
            decoder_of: returns what decodes the tokens of a job; None if nothing does.
            check: asks the operator's policy; None permits every preview.
            is_away: returns whether the policy does not answer at present, and must.
        """
        self._preview_tokens = preview_tokens
        self._decoder_of = decoder_of
        self._check = check
        self._is_away = is_away
        self._permits = asyncio.Semaphore(MAX_CALLS)

    def can_render(self, job: Job) -> bool:
        """Returns whether there is a decoder for a job."""
        return self._decoder_of(job) is not None

    async def render(self, job: Job, shown: Mapping[int, int]) -> list[Preview]:
        """Renders the candidates of a job that have more rows than were shown before.

        Args:
            job: the job, detached from its transaction.
            shown: the number of rows shown before, by candidate.

        Returns:
            At most `MAX_PREVIEWS` previews; none if there are no new rows, the decoder is busy, or the policy is away.
            Those that the operator's policy refuses have no image.

        Raises:
            UnavailableError: the decoder, or the policy, does not answer.
        """
        decoder, side = self._decoder_of(job), side_of(job)
        if decoder is None or self._is_away():
            return []
        # The rows at the top that are kept whole of an initial image.
        given = job.given[: parameter_of(job, "keep_rows", 0) * side]
        complete = {
            candidate: tokens
            for candidate, tokens in self._complete_rows(job, given, side).items()
            if len(tokens) // side > shown.get(candidate, 0)
        }
        # Candidates with the fewest rows shown come first.
        chosen = sorted(complete, key=lambda candidate: (shown.get(candidate, 0), candidate))[:MAX_PREVIEWS]
        if not chosen or self._permits.locked():
            return []
        missing = {candidate: side**2 - len(complete[candidate]) for candidate in chosen}
        request = DecodeRequest(
            key=decoder.key,
            pictures=[
                ImageTokens(tokens=[*complete[candidate], *[0] * missing[candidate]]) for candidate in chosen
            ],
        )
        previews = []
        async with self._permits:
            with translated():
                async for response in decoder.stub.Decode(request, timeout=CALL_SECONDS):
                    candidate = chosen[response.index]
                    rows = len(complete[candidate]) // side
                    image = await asyncio.to_thread(_paint_grey, response.image.data, rows, side)
                    previews.append(Preview(candidate=candidate, rows_drawn=rows, image=image))
        return await self._permitted(job, previews)

    async def _permitted(self, job: Job, previews: list[Preview]) -> list[Preview]:
        """Returns the previews, those that are refused without their images."""
        if self._check is None or not previews:
            return previews
        pictures = [
            PictureToCheck(
                candidate=preview.candidate,
                content=preview.image.data,
                unfinished=preview.rows_drawn < side_of(job),
            )
            for preview in previews
        ]
        verdicts = await self._check(pictures_to_check(job, pictures))
        return [
            Preview(candidate=preview.candidate, rows_drawn=preview.rows_drawn)
            if verdict.refused
            else preview
            for preview, verdict in zip(previews, verdicts, strict=True)
        ]

    def _complete_rows(self, job: Job, given: Sequence[int], side: int) -> dict[int, list[int]]:
        """Returns the tokens of the complete rows of each candidate, from the top without gaps."""
        found: dict[int, list[int]] = {}
        for run in self._preview_tokens.runs(job.id, since=first_lease(job)):
            so_far = found.setdefault(run.candidate, list(given))
            if run.start <= len(so_far):
                so_far[run.start :] = run.tokens
        return {candidate: so_far[: len(so_far) // side * side] for candidate, so_far in found.items()}


def _paint_grey(content: bytes, rows: int, side: int) -> EncodedImage:
    """Paints the rows that are not generated yet grey."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
        image = opened.convert("RGB")
    image.paste(GREY, (0, image.height * rows // side, image.width, image.height))
    return image_message(image)
