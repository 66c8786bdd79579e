"""Downloading the pictures of a job: files arrive in pieces and are verified."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from PIL import Image

from smalti.client.retries import RetryBudget
from smalti.errors import RemoteError, SmaltiError, UnavailableError
from smalti.files import write_atomically
from smalti.parameters import SamplingParameters
from smalti.pictures import Drawing, png_bytes
from smalti.rpc.conversion import second_pass_of
from smalti.v1 import job_pb2
from smalti.v1.image_pb2 import DownloadImagesRequest, DownloadImagesResponse

DOWNLOAD_SECONDS: Final = 300.0
"""Time until a download is renewed for the missing pictures."""
MAX_DAMAGED: Final = 3
"""Number of damaged files after which a download fails."""


@dataclass(frozen=True, kw_only=True)
class RemotePicture:
    """A picture of a job, downloaded from a gateway; a `smalti.Picture`."""

    content: bytes
    """The PNG file as the gateway stores it; its record lacks the score, which is known only later."""
    message: job_pb2.Picture
    """The picture's entry in the job: size, checksum, location in the store."""
    job: job_pb2.Job
    """The job, as it was when the download began."""
    total: int | None = None
    """Number of candidates to record in the drawing; None for the job's own number."""

    @property
    def candidate(self) -> int:
        """Its index among the candidates; together with the seed it reproduces the picture."""
        return self.message.candidate

    @property
    def rank(self) -> int:
        """Its rank among the job's pictures; 0 is the best."""
        return self.message.rank

    @property
    def score(self) -> float:
        """The ranker's score, comparable among the pictures of one prompt and one model."""
        return self.message.score

    @property
    def seed(self) -> int:
        """The seed, shared by all candidates of the job."""
        return self.job.parameters.seed

    @property
    def tokens(self) -> None:
        """None: a gateway does not send the tokens of a finished picture."""
        return

    @cached_property
    def image(self) -> Image.Image:
        """The picture itself, in RGB."""
        image = Image.open(io.BytesIO(self.content))
        image.load()
        return image

    @cached_property
    def drawing(self) -> Drawing:
        """The record in the PNG file of how the picture was made."""
        parameters, effective = self.job.parameters, self.job.prompt_reading.drawn
        refine = parameters.refine if parameters.HasField("refine") else None
        return Drawing(
            prompt=parameters.prompt,
            seed=parameters.seed,
            model=parameters.model.name,
            revision=parameters.model.revision,
            sampling=SamplingParameters(
                # A gateway of an earlier version leaves out what it does not know.
                **{field.name: value for field, value in parameters.sampling.ListFields()}
            ),
            candidates=self.total or parameters.candidates,
            candidate=self.candidate,
            score=round(self.score, 4),
            drawn=effective if effective and effective != parameters.prompt else None,
            vary=parameters.vary,
            wording=self.message.wording or None,
            second_pass=second_pass_of(parameters, parameters.upscale),
            refiner=refine.revision if refine else None,
        )

    def to_png(self) -> bytes:
        """Returns the PNG file, with its drawing inside, that `smalti generate` writes."""
        return png_bytes(self.image, self.drawing)

    def save(self, path: Path | str) -> None:
        """Writes the PNG file atomically; a file with this name is replaced."""
        write_atomically(Path(path), self.to_png())


class PictureDownload:
    """A download of a job's pictures; a `ResumableStream`."""

    def __init__(self, job: job_pb2.Job, candidates: Sequence[int] | None, budget: RetryBudget) -> None:
        """Has received nothing yet.

        Args:
            job: the job, with its pictures.
            candidates: candidates whose pictures to download; None for all pictures of the job.
            budget: how long to retry when the stream breaks.
        """
        self._job = job
        self._budget = budget
        requested = [picture.candidate for picture in job.pictures] if candidates is None else candidates
        self._missing = dict.fromkeys(requested)
        # A job without pictures is requested once all the same: the server says why it has none.
        self._requested = False
        self._picture: job_pb2.Picture | None = None
        self._content = bytearray()
        self._damaged = 0

    @property
    def done(self) -> bool:  # noqa: D102
        return self._requested and not self._missing

    def request(self) -> DownloadImagesRequest:  # noqa: D102
        self._requested = True
        self._picture = None
        self._content.clear()
        return DownloadImagesRequest(job_id=self._job.id, candidates=self._missing)

    def take(self, piece: DownloadImagesResponse) -> RemotePicture | None:
        """Returns a picture once its last piece has arrived.

        Raises:
            RemoteError: too many files arrived damaged.
        """
        self._budget.renew()
        if piece.HasField("picture"):
            self._picture = piece.picture
            self._content.clear()
        picture = self._picture
        if picture is None:
            return None
        self._content += piece.data
        if len(self._content) < picture.size_bytes:
            return None
        self._picture, content = None, bytes(self._content)
        self._content.clear()
        if hashlib.sha256(content).hexdigest() != picture.sha256:
            self._damaged += 1
            if self._damaged >= MAX_DAMAGED:
                raise RemoteError(
                    f"picture {picture.candidate} of job {self._job.id} arrives damaged: its SHA-256 is not "
                    f"{picture.sha256}",
                    code="DATA_LOSS",
                )
            return None
        if picture.candidate not in self._missing:
            return None
        del self._missing[picture.candidate]
        return RemotePicture(content=content, message=picture, job=self._job)

    def pause(self, error: SmaltiError | None) -> float:  # noqa: D102
        if error is None:
            error = UnavailableError(f"the server sent only some of the pictures of job {self._job.id}")
        return self._budget.pause(error)
