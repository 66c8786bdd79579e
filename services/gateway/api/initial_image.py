"""The picture that a job draws on from, as image tokens: given as such, as a picture of an earlier job, or a file."""

import asyncio
from typing import TYPE_CHECKING

from smalti.errors import (
    DamagedObjectError,
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    MissingObjectError,
    ModelMismatchError,
    NotSupportedError,
    PictureNotFoundError,
)
from smalti.pictures import read_image
from smalti.results import ResultFile
from smalti.rpc.conversion import given_tokens
from smalti.rpc.errors import translated
from smalti.services.gateway.database.tables import State
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.settings import GATEWAY_PREFIX
from smalti.storage import JobKeys
from smalti.v1.decoder_pb2 import EncodeImagesRequest
from smalti.v1.job_pb2 import InitialImage, PictureReference

if TYPE_CHECKING:
    from smalti.v1.decoder_pb2_grpc import DecoderServiceAsyncStub


class InitialImages:
    """Turns initial images into the tokens of the rows that are kept."""

    def __init__(self, gateway: Gateway, decoder: "DecoderServiceAsyncStub | None") -> None:
        """Takes what it works with.

        Args:
            gateway: has the earlier jobs, their results, and the model.
            decoder: encodes files; None where there is none.
        """
        self._jobs = gateway.jobs
        self._store = gateway.store
        self._spec = gateway.spec
        self._threads = gateway.threads
        self._most_bytes = gateway.settings.image_bytes
        self._decoder = decoder

    async def tokens(self, image: InitialImage) -> tuple[int, ...]:
        """Returns the tokens of the rows that are kept.

        Raises:
            InvalidInputError: the image cannot be used; names the field.
            PictureNotFoundError: there is no such picture of an earlier job.
            JobNotSucceededError: the earlier job has no pictures.
            ModelMismatchError: the earlier job was drawn by another model.
            NotSupportedError: it is a file, and there is nothing that can encode it.
            UnavailableError: the store, the database or the decoder does not answer.
        """
        kept = image.keep_rows * self._spec.side
        match image.WhichOneof("source"):
            case "tokens":
                whole = len(image.tokens.tokens) > kept
                return self._check(image, whole)[:kept]
            case "picture":
                loop = asyncio.get_running_loop()
                return (await loop.run_in_executor(self._threads, self._of_picture, image.picture))[:kept]
            case _:
                return (await self._of_file(image.image))[:kept]

    def _check(self, image: InitialImage, whole: bool) -> tuple[int, ...]:
        kept = image.keep_rows * self._spec.side
        length = self._spec.tokens if whole else kept
        found = len(image.tokens.tokens)
        if found not in (kept, self._spec.tokens):
            raise InvalidInputError(
                "tokens.tokens",
                f"has {found}; {image.keep_rows} rows have {kept}, a whole picture has {self._spec.tokens}",
            )
        return given_tokens(image.tokens, length, self._spec.codebook_size, field="tokens", whole=True)

    def _of_picture(self, reference: PictureReference) -> tuple[int, ...]:
        name = f"{reference.job_id}/{reference.candidate}"
        try:
            job = self._jobs.get(reference.job_id, full=False).job
        except JobNotFoundError:
            raise PictureNotFoundError(name) from None
        if job.state is not State.SUCCEEDED:
            raise JobNotSucceededError(f"job {job.id} is {job.state}; it has no pictures")
        if job.parameters["revision"] != self._spec.folder.revision:
            raise ModelMismatchError(f"picture {name} was drawn by another model than the one that is loaded")
        key = JobKeys(job.id).result
        try:
            result = ResultFile.parse(key, self._store.get(key))
        except (MissingObjectError, DamagedObjectError):
            raise PictureNotFoundError(name) from None
        for picture in result.pictures:
            if picture.index == reference.candidate:
                return picture.tokens
        raise PictureNotFoundError(name)

    async def _of_file(self, content: bytes) -> tuple[int, ...]:
        if self._decoder is None or not self._spec.encodes_images:
            remedy = "its model has no encoder" if self._decoder else f"{GATEWAY_PREFIX}DECODER is not set"
            raise NotSupportedError(f"this service cannot turn files into tokens: {remedy}")
        if len(content) > self._most_bytes:
            raise InvalidInputError("image", f"has {len(content)} bytes; the most is {self._most_bytes}")
        # Before it is sent, so that its field is named.
        await asyncio.get_running_loop().run_in_executor(self._threads, read_image, content, "image")
        with translated():
            response = await self._decoder.EncodeImages(EncodeImagesRequest(images=[content]))
        return given_tokens(
            response.pictures[0], self._spec.tokens, self._spec.codebook_size, field="image", whole=True
        )
