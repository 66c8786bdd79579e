"""The image tokens that the edits of a batch keep, for the threads that plan batches."""

import asyncio
from concurrent.futures import CancelledError
from typing import Final

from smalti.batches import EditSource
from smalti.batches.openai import data_url_content
from smalti.errors import (
    DamagedObjectError,
    InvalidInputError,
    MissingObjectError,
    NotSupportedError,
    StoredFileNotFoundError,
    UnavailableError,
    WrongStateError,
)
from smalti.services.gateway.api.initial_image import InitialImages
from smalti.services.gateway.database.tables import Batch
from smalti.services.gateway.files import FileContents
from smalti.services.gateway.gateway import Gateway
from smalti.v1.job_pb2 import InitialImage

ENCODING_SECONDS: Final = 60.0
"""Time within which a decoder must have encoded a picture."""
_DATA: Final = "data:"


class EditTokens:
    """Returns the tokens of an edit; called by any thread but that of the event loop."""

    def __init__(self, gateway: Gateway, images: InitialImages, loop: asyncio.AbstractEventLoop) -> None:
        """Creates it.

        Args:
            gateway: has the files that edits name.
            images: encodes pictures.
            loop: the event loop in which it does so.
        """
        self._catalogue = gateway.context.catalogue
        self._files = gateway.files
        self._contents = FileContents(gateway.context.store)
        self._max_bytes = gateway.context.settings.image_bytes
        self._images = images
        self._loop = loop

    def __call__(self, batch: Batch, edit: EditSource) -> tuple[int, ...]:
        """Returns the tokens by position, with `FREE` for those that are drawn anew.

        Raises:
            InvalidInputError: a picture cannot be used, or pictures cannot be encoded here; names the field.
            UnavailableError: the store, the database or the decoder does not answer.
        """
        image = self._content(batch, edit.image, "images")
        # Without a mask, the transparent part of the picture is drawn anew.
        mask = image if edit.mask is None else self._content(batch, edit.mask, "mask")
        card = self._catalogue.fleet.card(batch.revision)
        request = self._images.tokens(InitialImage(image=image, mask=mask), card)
        encoding = asyncio.run_coroutine_threadsafe(request, self._loop)
        try:
            return encoding.result(ENCODING_SECONDS)
        except InvalidInputError as error:
            raise InvalidInputError(
                "images" if error.field == "image" else error.field, error.problem
            ) from None
        except NotSupportedError as error:
            raise InvalidInputError("images", str(error)) from None
        except (TimeoutError, CancelledError) as error:
            encoding.cancel()
            raise UnavailableError("a picture could not be encoded in time") from error

    def _content(self, batch: Batch, source: str, field: str) -> bytes:
        if source.startswith(_DATA):
            return data_url_content(source, field)
        try:
            file = self._files.get_ready(source, tenant=batch.tenant)
        except (StoredFileNotFoundError, WrongStateError) as error:
            raise InvalidInputError(field, str(error)) from None
        if file.size > self._max_bytes:
            raise InvalidInputError(field, f"must have at most {self._max_bytes} bytes, got {file.size}")
        try:
            return b"".join(self._contents.pieces(file))
        except (MissingObjectError, DamagedObjectError):
            raise InvalidInputError(field, f"file {source} was deleted, or is damaged") from None
