"""The files of a job's pictures: put together from their pieces, and verified."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from smalti.client.following import RetryBudget
from smalti.errors import RemoteError, SmaltiError, UnavailableError
from smalti.files import write_atomically
from smalti.v1 import job_pb2
from smalti.v1.image_pb2 import DownloadImagesRequest, DownloadImagesResponse

MAX_DAMAGED = 3
"""Files of one download that may arrive damaged before it is given up."""


@dataclass(frozen=True)
class Picture:
    """A picture of a job, with its file."""

    content: bytes
    """The file; a PNG that carries how it was drawn."""
    message: job_pb2.Picture
    """What the job says of it: size, checksum, where it is in the store."""
    job: job_pb2.Job
    """The job, as it was when the download began."""

    @property
    def candidate(self) -> int:
        """Its index among the candidates; with the seed it gives the same picture again."""
        return self.message.candidate

    @property
    def rank(self) -> int:
        """Its place among the job's pictures: 0 is the best."""
        return self.message.rank

    @property
    def score(self) -> float:
        """The ranker's, comparable among the pictures of one prompt and one model."""
        return self.message.score

    @property
    def seed(self) -> int:
        """The seed of all pictures of the job."""
        return self.job.parameters.seed

    @property
    def image(self) -> Image.Image:
        """The picture itself."""
        image = Image.open(io.BytesIO(self.content))
        image.load()
        return image

    def save(self, path: Path | str) -> None:
        """Writes the file as it is, whole or not at all."""
        write_atomically(Path(path), self.content)


class Downloading:
    """A download, through as many streams as it takes."""

    def __init__(self, job: job_pb2.Job, candidates: Sequence[int] | None, patience: RetryBudget) -> None:
        """Has nothing yet.

        Args:
            job: the job, with its pictures.
            candidates: the candidates whose pictures are wanted; None for all of the job's.
            patience: how long to go on when the stream breaks.
        """
        self._job = job
        self._patience = patience
        wanted = [picture.candidate for picture in job.pictures] if candidates is None else candidates
        self._missing = dict.fromkeys(wanted)
        # A job without pictures has nothing to ask for, and the server says why.
        self._asked = False
        self._picture: job_pb2.Picture | None = None
        self._content = bytearray()
        self._damaged = 0

    @property
    def done(self) -> bool:
        """See `ResumableStream`."""
        return self._asked and not self._missing

    def request(self) -> DownloadImagesRequest:
        """See `ResumableStream`."""
        self._asked = True
        self._picture = None
        self._content.clear()
        return DownloadImagesRequest(job_id=self._job.id, candidates=self._missing)

    def take(self, piece: DownloadImagesResponse) -> Picture | None:
        """Returns a picture when its last piece has come; None before.

        Raises:
            RemoteError: files have arrived that are not what their checksums say.
        """
        self._patience.renew()
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
                    f"picture {picture.candidate} of job {self._job.id} does not arrive whole: its SHA-256 is not "
                    f"{picture.sha256}",
                    code="DATA_LOSS",
                )
            return None
        if picture.candidate not in self._missing:
            return None
        del self._missing[picture.candidate]
        return Picture(content, picture, self._job)

    def pause(self, error: SmaltiError | None) -> float:
        """See `ResumableStream`."""
        if error is None:
            error = UnavailableError(f"pictures of job {self._job.id} are missing from what the server sent")
        return self._patience.pause(error)
