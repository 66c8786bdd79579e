"""Whether the process lives, and whether it can serve."""

import asyncio
from typing import Final

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from smalti.errors import AuthenticationError, PermissionDeniedError, SmaltiError
from smalti.services.web.context import Context

READY_SECONDS: Final = 2.0
"""Time in which the gateway must answer."""

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> Response:
    """Returns 200 while the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def readyz(context: Context) -> Response:
    """Returns 200 if the gateway answers, and 503 if it does not or the service is shutting down."""
    if context.leaving.is_set():
        return PlainTextResponse("shutting down\n", 503)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await context.catalogue.models()
    except (AuthenticationError, PermissionDeniedError):
        pass  # It answers: a probe has no key.
    except (SmaltiError, TimeoutError):
        return PlainTextResponse("the gateway does not answer\n", 503)
    return PlainTextResponse("ok\n")
