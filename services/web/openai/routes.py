"""The routes below `/v1`."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from smalti.client import GenerateOptions
from smalti.errors import InvalidInputError
from smalti.services.web.context import Context, WebContext, with_key
from smalti.services.web.jobs import sse
from smalti.services.web.jobs.following import wait_for, while_connected
from smalti.services.web.openai import batches, files
from smalti.services.web.openai.answers import response_of
from smalti.services.web.openai.content import FileQuality, Format, parse_id, picture_file
from smalti.services.web.openai.plan import make_plan
from smalti.services.web.openai.schema import (
    EditForm,
    GenerationRequest,
    ImagesResponse,
    ModelList,
    ModelObject,
    OpenAIErrorBody,
    VariationForm,
)
from smalti.services.web.openai.stream import stream_of
from smalti.services.web.openai.uploads import form_schema, read_edit, read_variation
from smalti.services.web.pictures import PATH, PictureLink
from smalti.v1.model_pb2 import Model

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIErrorBody, "description": "The request cannot be carried out."},
    "5XX": {"model": OpenAIErrorBody, "description": "The service cannot carry it out now."},
}
PICTURES_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Pictures, or events with `stream`."}
}

_CONTENT = PATH.removeprefix("/v1")

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS, dependencies=[with_key])


router.include_router(files.router)
router.include_router(batches.router)


@router.post(
    "/images/generations",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    responses=PICTURES_OR_EVENTS,
)
async def create_images(request: Request, body: GenerationRequest, context: Context) -> Any:
    """Draws pictures of a prompt, and returns the best.

    An `Idempotency-Key` makes the call safe to repeat. If the client closes the connection, the job is cancelled after
    a while, unless `response_format` is `url`.
    """
    return await _draw(request, context, body)


@router.post(
    "/images/edits",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    responses=PICTURES_OR_EVENTS,
    openapi_extra=form_schema(EditForm, "image", "mask"),
)
async def edit_image(request: Request, context: Context) -> Any:
    """Draws the tiles of a picture under the transparent part of a mask anew; all others stay as they are."""
    form, image, mask = await read_edit(request)
    return await _draw(request, context, form, {"initial_image": image, "mask": mask}, events="image_edit")


@router.post(
    "/images/variations",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    openapi_extra=form_schema(VariationForm, "image"),
)
async def vary_image(request: Request, context: Context) -> Any:
    """Draws pictures that keep a share of the tiles of a picture."""
    form, image = await read_variation(request)
    if form.stream:
        raise InvalidInputError("stream", "is not supported for variations; leave it out")
    return await _draw(request, context, form, {"initial_image": image, "strength": form.strength})


@router.get("/models")
async def list_models(context: Context) -> ModelList:
    """Lists the models."""
    return ModelList(data=[_model(each) for each in await context.catalogue.models()])


@router.get("/models/{model}")
async def get_model(model: str, context: Context) -> ModelObject:
    """Returns a model."""
    return _model(await context.catalogue.find(model))


@router.head(_CONTENT, response_class=Response, include_in_schema=False)
@router.get(_CONTENT, response_class=Response)
async def get_content(
    request: Request,
    context: Context,
    picture_id: Annotated[str, Path(alias="id")],
    expires: Annotated[int, Query(ge=0, lt=2**53)],
    signature: str,
    output_format: Annotated[Format, Query(alias="format")],
    quality: FileQuality = 100,
) -> Response:
    """Returns the file of a picture, at a URL from an answer."""
    job_id, candidate = parse_id(picture_id)
    link = PictureLink(
        job_id=job_id, candidate=candidate, output_format=output_format, quality=quality, expires=expires
    )
    return await picture_file(request, context, link, signature)


async def _draw(
    request: Request,
    context: WebContext,
    body: GenerationRequest,
    source: GenerateOptions | None = None,
    *,
    events: str = "image_generation",
) -> Any:
    """Draws pictures; `source` has the picture of which a part is kept, and `events` begins the names of events."""
    model = await context.catalogue.find(body.model)
    plan = make_plan(body, model, context.settings.wait, source, events)
    try:
        job = await context.repeats.create(request.headers, plan.prompt, plan.max_labels, **plan.options)
    except InvalidInputError as error:
        if error.field != "initial_image":
            raise
        raise InvalidInputError("image", error.problem) from None
    if body.stream:
        return sse.streamed(stream_of(context, job, plan, model), context.settings)
    with context.attendance.attend(job.id, keep=plan.as_urls):
        job = await while_connected(request, wait_for(context.client, job), context.interrupted)
        return await response_of(request, context, job, plan, model)


def _model(model: Model) -> ModelObject:
    return ModelObject(
        id=model.reference.name,
        description=model.description,
        size=f"{model.image_width}x{model.image_height}",
    )
