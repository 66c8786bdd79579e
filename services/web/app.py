"""The application: routes, errors, and what surrounds them."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

import smalti
from smalti.errors import InvalidInputError, SmaltiError
from smalti.services.web import native, openai, page
from smalti.services.web.context import WebContext
from smalti.services.web.failures import UnknownFieldError, failure_of
from smalti.services.web.limits import ClientLimits, Guard
from smalti.services.web.observer import Observer
from smalti.services.web.operations import documents, health
from smalti.services.web.settings import wants_key
from smalti.settings import listed

MIN_GZIP_BYTES = 1024
GZIP_LEVEL = 5
"""Most of the gain at a fraction of the time of level 9."""
EXPOSED = ("retry-after", "retry-after-ms", "x-request-id")
"""Headers of an answer that pages of other origins may read."""

DESCRIPTION = """Pictures from prompts.

`/v1` is the OpenAI Images API, for the clients that exist. `/api` is our own: jobs, and their events while they are
drawn."""


def build(context: WebContext) -> ASGIApp:
    """Returns the application."""
    app = FastAPI(
        title="Smalti",
        version=smalti.__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    for kind in (SmaltiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    app.state.context = context
    routers: Sequence[APIRouter] = (openai.router, native.router, health.router, documents.router)
    for router in routers:
        app.include_router(router)
    settings = context.settings
    if settings.wall:
        app.include_router(native.wall_router)
    documents.mount(app)
    page.mount(app, settings)
    inner: ASGIApp = GZipMiddleware(app, minimum_size=MIN_GZIP_BYTES, compresslevel=GZIP_LEVEL)
    clients = ClientLimits(requests=settings.client_requests, rate=settings.client_rate)
    inner = Guard(inner, settings, clients, context.draining, wants_key=wants_key())
    if origins := listed(settings.origins):
        inner = CORSMiddleware(
            inner, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )
    return Observer(inner, context.metrics)


def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        error = _invalid(error)
    return failure_of(error, during=f"{request.method} {request.url.path}").response(request.url.path)


def _invalid(error: RequestValidationError) -> InvalidInputError:
    """Returns the first problem of a request, with the name of its field."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path[1:]) or path[0]
    match first["type"]:
        case "extra_forbidden":
            return UnknownFieldError(where)
        case "missing":
            return InvalidInputError(where, "is missing")
        case "json_invalid":
            return InvalidInputError("body", f"is not JSON: {first['ctx']['error']}")
        case "model_attributes_type":
            return InvalidInputError(where, "must be a JSON object, sent with content-type: application/json")
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f", not {given!r:.80}" if path[1:] and isinstance(given, str | int | float | bool) else ""
    return InvalidInputError(where, f"{message[:1].lower()}{message[1:]}{shown}")
