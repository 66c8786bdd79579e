"""The files of pictures at their signed URLs."""

import re
import time
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.responses import Response

from smalti.errors import PictureNotFoundError
from smalti.services.web.context import WebContext
from smalti.services.web.failures import HttpError
from smalti.services.web.gateway import calling_with
from smalti.services.web.pictures import OutputFormat, PictureLink, converted

_ID: Final = re.compile(r"(?P<job>[A-Za-z0-9-]{1,64})-(?P<candidate>[0-9]{1,7})")

Format = Annotated[OutputFormat, Query()]
FileQuality = Annotated[int, Query(ge=0, le=100)]


async def picture_file(request: Request, context: WebContext, link: PictureLink, signature: str) -> Response:
    """Returns the file of a picture.

    Raises:
        HttpError: the URL was not signed here, or has expired.
        PictureNotFoundError: the job or the picture was deleted.
    """
    if not context.links.is_valid(link, signature):
        problem = "the URL has expired, or is not complete; ask for the picture again"
        raise HttpError(HTTPStatus.FORBIDDEN, problem, reason="URL_EXPIRED")
    # The signature says that somebody who may see the picture was given its URL.
    with calling_with(context.settings.key):
        return await _file(request, context, link)


async def _file(request: Request, context: WebContext, link: PictureLink) -> Response:
    job = await context.client.get(link.job_id)
    picture = next((each for each in job.pictures if each.candidate == link.candidate), None)
    if picture is None:
        raise PictureNotFoundError(link.id)
    tag = f'"{picture.sha256[:32]}-{link.output_format.value}-{link.quality}"'
    headers = {
        "cache-control": f"private, immutable, max-age={max(0, link.expires - int(time.time()))}",
        "content-disposition": f'inline; filename="{link.id}.{link.output_format.value}"',
        "etag": tag,
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    async for found in context.client.download(job, candidates=[link.candidate]):
        file = await converted(found.content, link.output_format, link.quality)
        return Response(file, media_type=link.output_format.media_type, headers=headers)
    raise PictureNotFoundError(link.id)


def parse_id(picture_id: str) -> tuple[str, int]:
    """Returns the job and the candidate of a picture's id; raises `PictureNotFoundError` for another text."""
    match = _ID.fullmatch(picture_id)
    if match is None:
        raise PictureNotFoundError(picture_id[:100])
    return match["job"], int(match["candidate"])
