"""Finished jobs as answers of the OpenAI API."""

from base64 import b64encode
from typing import Any

from starlette.requests import Request

from smalti.services.web.context import WebContext
from smalti.services.web.openai.plan import Plan
from smalti.services.web.openai.schema import ImageData, ImagesResponse, InputTokens, OutputTokens, Usage
from smalti.services.web.pictures import PictureLink, converted
from smalti.v1.job_pb2 import Job, Picture
from smalti.v1.model_pb2 import Model


async def response_of(
    request: Request, context: WebContext, job: Job, plan: Plan, model: Model
) -> ImagesResponse:
    """Returns the answer for a job that has succeeded, with URLs or with files."""
    prompt = revised_prompt(job)
    if plan.as_urls:
        urls = [picture_url(request, context, job, picture, plan) for picture in job.pictures]
        data = [ImageData(url=url, revised_prompt=prompt) for url in urls]
    else:
        files = await files_of(context, job, plan)
        data = [ImageData(b64_json=content, revised_prompt=prompt) for content in files]
    return ImagesResponse(
        created=job.create_time.seconds,
        data=data,
        output_format=plan.output_format,
        quality=plan.quality,
        size=plan.size,
        usage=usage_of(job, model),
        safety_identifier=plan.safety_identifier,
        id=job.id,
        seed=str(job.parameters.seed),
    )


async def files_of(context: WebContext, job: Job, plan: Plan) -> list[str]:
    """Returns the files of a job's pictures in Base64, the best first."""
    found = {}
    async for picture in context.client.download(job):
        found[picture.candidate] = await converted(picture.content, plan.output_format, plan.file_quality)
    return [b64encode(found[ranked.candidate]).decode() for ranked in job.pictures]


def picture_url(request: Request, context: WebContext, job: Job, picture: Picture, plan: Plan) -> str:
    """Returns the URL of a picture: the store's if that is set and the file needs no conversion, or ours."""
    is_stored = plan.output_format.media_type == picture.media_type
    if context.settings.store_urls and picture.url and is_stored:
        return picture.url
    link = PictureLink(
        job_id=job.id,
        candidate=picture.candidate,
        output_format=plan.output_format,
        quality=plan.file_quality,
        expires=context.links.after(context.settings.url_lifetime),
    )
    return context.links.url(request, link)


def usage_of(job: Job, model: Model) -> Usage:
    """Returns the tokens that were read and generated for a job."""
    text = job.prompt_reading.text_tokens
    given = model.rows * model.columns if job.parameters.HasField("initial_image") else 0
    image = job.progress.rows * model.columns
    return Usage(
        input_tokens=text + given,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=given),
        output_tokens=image,
        output_tokens_details=OutputTokens(image_tokens=image),
        total_tokens=text + given + image,
    )


def revised_prompt(job: Job) -> str | None:
    """Returns the prompt in words that the model knows; None if it is the prompt as written.

    What a candidate was given beyond the prompt, such as a style, is not the prompt: the native API names it.
    """
    drawn = job.prompt_reading.drawn
    return drawn if drawn and drawn != job.parameters.prompt else None


def event_fields(plan: Plan, created: int, content: str) -> dict[str, Any]:
    """Returns what the events of partial and of finished pictures have in common."""
    return {
        "b64_json": content,
        "background": "opaque",
        "created_at": created,
        "output_format": plan.output_format.value,
        "quality": plan.quality,
        "size": plan.size,
    }
