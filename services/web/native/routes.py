"""The routes below `/api`."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from smalti.client import has_ended
from smalti.errors import InvalidInputError
from smalti.services.web.context import Context, with_key
from smalti.services.web.jobs import sse
from smalti.services.web.native.conversion import job_object, model_object, options_of
from smalti.services.web.native.events import events_of, parse_last_id
from smalti.services.web.native.schema import (
    JobList,
    JobObject,
    JobRequest,
    NativeModel,
    NativeModelList,
    Problem,
    State,
)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
    for status, what in (
        ("4XX", "The request cannot be carried out."),
        ("5XX", "The service cannot carry it out now."),
    )
}

router = APIRouter(prefix="/api", tags=["Smalti"], responses=ERRORS, dependencies=[with_key])


@router.post(
    "/jobs", status_code=HTTPStatus.CREATED, response_model=JobObject, response_model_exclude_unset=True
)
async def create_job(request: Request, response: Response, body: JobRequest, context: Context) -> Any:
    """Creates a job and returns it at once. It runs to its end even if the client goes away."""
    model = await context.catalogue.find(body.model)
    job = await context.repeats.create(request.headers, body.prompt, model.limits.labels, **options_of(body))
    response.headers["location"] = f"/api/jobs/{job.id}"
    return job_object(request, context, job)


@router.get("/jobs", response_model=JobList, response_model_exclude_unset=True)
async def list_jobs(
    request: Request,
    context: Context,
    state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.")] = None,
    label: Annotated[
        list[str] | None, Query(description="Only jobs with all of these labels: `KEY=VALUE`.")
    ] = None,
    created_since: Annotated[datetime | None, Query(description="Only jobs created then or later.")] = None,
    created_before: Annotated[datetime | None, Query(description="Only jobs created before.")] = None,
    page_size: Annotated[int, Query(ge=0, le=1000, description="0 for the default.")] = 0,
    page_token: Annotated[str, Query(description="`next_page_token` of the page before.")] = "",
) -> Any:
    """Lists jobs, the newest first."""
    page = await context.client.page(
        page_token=page_token,
        states=state or (),
        labels=_labels(label or []),
        created_since=created_since,
        created_before=created_before,
        page_size=page_size,
    )
    jobs = [job_object(request, context, job, full=False) for job in page.jobs]
    return {"jobs": jobs, "next_page_token": page.next_page_token}


@router.get("/jobs/{job_id}", response_model=JobObject, response_model_exclude_unset=True)
async def get_job(request: Request, job_id: str, context: Context) -> Any:
    """Returns a job as it is now."""
    return job_object(request, context, await context.client.get(job_id))


@router.post("/jobs/{job_id}/cancel", response_model=JobObject, response_model_exclude_unset=True)
async def cancel_job(request: Request, job_id: str, context: Context) -> Any:
    """Cancels a job; one that has ended stays as it is."""
    return job_object(request, context, await context.client.cancel(job_id))


@router.delete("/jobs/{job_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_job(job_id: str, context: Context) -> None:
    """Cancels a job if it is open, and deletes it with its pictures."""
    await context.client.delete(job_id)


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        204: {"description": "The job has ended, and the client has its last event: do not connect again."}
    },
)
async def get_events(
    request: Request,
    job_id: str,
    context: Context,
    last_event_id: Annotated[str | None, Header(description="The last `id` that was received.")] = None,
) -> Response:
    """Streams a job until it has ended.

    * `job`: a new state, as `GET /api/jobs/{job_id}` returns it. Its `id` is the version of the job.
    * `rows`: new tokens: `{"runs": [{"candidate", "start", "tokens"}]}`.
    * `preview`: a picture of the rows so far: `{"candidate", "rows_drawn", "media_type", "data"}`, with Base64 data.
    * `error`: a problem; the stream ends with it, and can be taken up again with `Last-Event-ID`.
    """
    since = parse_last_id(last_event_id)
    # Before the answer begins, so that a job that does not exist is a 404.
    job = await context.client.get(job_id)
    if since is not None and has_ended(job) and job.version <= since:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return sse.streamed(events_of(request, context, job_id, since), context.settings)


@router.get("/models", response_model=NativeModelList, response_model_exclude_unset=True)
async def list_models(context: Context) -> Any:
    """Lists the models, without their words."""
    return {"models": [model_object(each) for each in await context.catalogue.models()]}


@router.get("/models/{name}", response_model=NativeModel, response_model_exclude_unset=True)
async def get_model(name: str, context: Context) -> Any:
    """Returns a model with the words that it knows."""
    return model_object(await context.catalogue.described(name), words=True)


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for each in given:
        key, separator, value = each.partition("=")
        if not separator:
            raise InvalidInputError("label", f"must have the form KEY=VALUE, not {each!r:.80}")
        labels[key] = value
    return labels
