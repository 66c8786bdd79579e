"""Forms with pictures (`multipart/form-data`), as OpenAI's edits and variations have them."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from smalti.errors import InvalidInputError
from smalti.pictures import receive_prompt
from smalti.services.web.failures import UnknownFieldError
from smalti.services.web.openai.schema import EditForm, GenerationRequest, VariationForm

MULTIPART: Final = "multipart/form-data"
MAX_FIELDS: Final = 64
DEFAULT_PROMPT: Final = "a picture"
"""The prompt of a variation of a picture that does not say how it was made."""

Form = TypeVar("Form", bound=BaseModel)


async def read_edit(request: Request) -> tuple[EditForm, bytes, bytes]:
    """Returns the fields of a request for edits, the picture, and the mask.

    Without a mask, the picture is its own: its transparent part is drawn anew.

    Raises:
        InvalidInputError: the form or a field of it cannot be used.
    """
    fields, files = await _read(request, ("image", "mask"))
    return checked(EditForm, fields), files["image"], files.get("mask", files["image"])


async def read_variation(request: Request) -> tuple[VariationForm, bytes]:
    """Returns the fields of a request for variations, and the picture.

    Without a prompt, the one is taken that the file records, if it is a picture of ours.

    Raises:
        InvalidInputError: the form or a field of it cannot be used.
    """
    fields, files = await _read(request, ("image",))
    if "prompt" not in fields:
        fields["prompt"] = await _recorded_prompt(files["image"])
    return checked(VariationForm, fields), files["image"]


def form_schema(kind: type[GenerationRequest], *pictures: str) -> dict[str, Any]:
    """Returns the description of a form for the OpenAPI document."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in pictures}
    schema["required"] = [*schema.get("required", ()), "image"]
    return {"requestBody": {"required": True, "content": {MULTIPART: {"schema": schema}}}}


def check_form(request: Request) -> None:
    """Raises `InvalidInputError` unless a request has a form."""
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        raise InvalidInputError("body", f"must be a form, sent with content-type: {MULTIPART}")


async def _read(request: Request, names: tuple[str, ...]) -> tuple[dict[str, str], dict[str, bytes]]:
    """Returns the text fields and the files of a form; `names` are those of the files."""
    check_form(request)
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=len(names) + 1, max_fields=MAX_FIELDS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in files or name in fields:
                raise InvalidInputError(name, "occurs several times; give one")
            if isinstance(value, UploadFile) and name in names:
                files[name] = await value.read()
            elif isinstance(value, UploadFile):
                raise UnknownFieldError(name)
            elif name in names:
                raise InvalidInputError(name, "must be a file, not text")
            else:
                fields[name] = value
    if "image" not in files:
        raise InvalidInputError("image", "is missing")
    return fields, files


def checked(kind: type[Form], fields: Mapping[str, Any]) -> Form:
    """Returns the fields of a form; raises `RequestValidationError`, which names the first that cannot be used."""
    try:
        # Not strict: a form has only text.
        return kind.model_validate(fields, strict=False)
    except ValidationError as error:
        problems = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(problems) from None


async def _recorded_prompt(content: bytes) -> str:
    """Returns the prompt that a picture was drawn from, or a neutral one; raises `InvalidInputError`."""
    return await receive_prompt(content, "image") or DEFAULT_PROMPT
