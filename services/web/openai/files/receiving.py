"""Forms with a file, which goes to a temporary file while it arrives."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request

from smalti.errors import InvalidInputError, OverloadedError, UnavailableError
from smalti.services.web.failures import UnknownFieldError
from smalti.services.web.openai.uploads import MULTIPART, check_form

MAX_FIELDS: Final = 16
MAX_FILES: Final = 8
"""Files that arrive at the same time; each takes room on the disk."""
_NESTED: Final = re.compile(r"(\w+)\[(\w+)\]")


class Receiving:
    """Counts the files that arrive. Only the event loop may use it."""

    def __init__(self) -> None:
        self._files = 0

    @contextmanager
    def file(self) -> Iterator[None]:
        """Counts a file while the block runs; raises `OverloadedError` if there are too many."""
        if self._files >= MAX_FILES:
            raise OverloadedError(f"{self._files} files already arrive; try again", 5.0)
        self._files += 1
        try:
            yield
        finally:
            self._files -= 1


receiving: Final = Receiving()


@asynccontextmanager
async def received(request: Request, name: str) -> AsyncIterator[tuple[dict[str, Any], UploadFile]]:
    """Yields the text fields of a form and its file, which is in no memory as a whole.

    Args:
        request: the request.
        name: the name of the file's field.

    Raises:
        InvalidInputError: the form cannot be used.
        OverloadedError: too many files arrive.
        UnavailableError: the disk is full.
    """
    check_form(request)
    with receiving.file():
        try:
            form = await request.form(max_files=1, max_fields=MAX_FIELDS)
        except OSError as error:
            problem = f"the service cannot keep the file while it arrives: {error.strerror}; try again"
            raise UnavailableError(problem, 30.0) from error
        try:
            fields: dict[str, Any] = {}
            file: UploadFile | None = None
            for key, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if key != name:
                        raise UnknownFieldError(key)
                    file = value
                elif key == name:
                    raise InvalidInputError(name, "must be a file, not text")
                elif nested := _NESTED.fullmatch(key):
                    group = fields.setdefault(nested[1], {})
                    if not isinstance(group, dict):
                        raise InvalidInputError(
                            nested[1], "occurs with and without brackets; give one of them"
                        )
                    group[nested[2]] = value
                else:
                    fields[key] = value
            if file is None:
                raise InvalidInputError(name, "is missing")
            yield fields, file
        finally:
            await form.close()


def file_schema(name: str, **fields: Any) -> dict[str, Any]:
    """Returns the description of a form with a file for the OpenAPI document; `fields` are those that must be there."""
    properties = {name: {"type": "string", "format": "binary"}, **fields}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"requestBody": {"required": True, "content": {MULTIPART: {"schema": schema}}}}
