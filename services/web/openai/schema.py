"""The bodies of the OpenAI Images API, with our extensions."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from smalti.batches.openai import Quality
from smalti.parameters import DrawingParameters
from smalti.services.web.pictures import OutputFormat

Label = Annotated[str, Field(max_length=256)]


class GenerationRequest(DrawingParameters):
    """A request for pictures. An unknown parameter is refused. `DrawingParameters` are our extensions."""

    prompt: str
    """What to draw."""
    model: str | None = None
    """A model of `GET /v1/models`; the default model if it is missing."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of pictures, the best of the candidates; 1 if it is missing."""
    size: str | None = None
    """`auto`, or the size of the model's pictures, such as `256x256`."""
    quality: Quality | None = None
    """How many candidates are drawn, of which the best are returned. `low` draws `n`; `medium` and `standard` the
    model's default; `high` and `hd` twice, `xhigh` three times and `max` four times as many. `auto`: the model's
    default, and more while the system is idle."""
    response_format: Literal["url", "b64_json"] | None = None
    """`url`: URLs that expire; `b64_json`: the files themselves, the default."""
    output_format: OutputFormat | None = Field(default=None, strict=False)
    """The format of the files; `png` if it is missing."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """The quality of JPEG and WebP files in per cent; 100 if it is missing."""
    background: Literal["transparent", "opaque", "auto"] | None = None
    """Without effect: pictures are opaque."""
    moderation: Literal["low", "auto"] | None = None
    """Without effect."""
    style: Literal["vivid", "natural"] | None = None
    """Without effect: say in the prompt which style you want."""
    stream: bool | None = None
    """Answer with events: partial pictures while they are drawn, then the finished ones."""
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """With `stream`: number of partial pictures, which show the rows that are drawn so far. There may be fewer."""
    user: Label | None = None
    """Kept with the job as the label `user`."""
    safety_identifier: Label | None = None
    """Kept with the job as the label `safety_identifier`."""


class EditForm(GenerationRequest):
    """A request to draw a part of a picture anew: a form with the files `image` and `mask` beside these fields.

    Tiles with a fully transparent pixel of the mask are drawn anew, and all others are kept. The mask is as large as
    the picture. Without one, the transparent part of the picture itself is drawn anew.
    """

    input_fidelity: Literal["high", "low"] | None = None
    """Without effect: tiles are kept or drawn anew."""


class VariationForm(GenerationRequest):
    """A request for pictures that resemble one: a form with the file `image` beside these fields.

    `prompt` may be missing: then the one is taken that a picture of ours records, and a neutral one for other pictures.
    """

    strength: float = 0.5
    """Extension. Share of the tiles to draw anew, between 0 and 1; each candidate draws other ones anew."""


class InputTokens(BaseModel):
    """Tokens of the prompt by kind."""

    image_tokens: int = 0
    """Tokens of the picture of an edit or a variation."""
    text_tokens: int


class OutputTokens(BaseModel):
    """Generated tokens by kind."""

    image_tokens: int
    text_tokens: int = 0


class Usage(BaseModel):
    """Tokens that were read and generated."""

    input_tokens: int
    """Text tokens that the encoder has read, and tokens of the picture that was given."""
    input_tokens_details: InputTokens
    output_tokens: int
    """Image tokens of all candidates, returned or not."""
    output_tokens_details: OutputTokens
    total_tokens: int


class ImageData(BaseModel):
    """A picture: its file or its URL."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    """The prompt in words that the model knows, if it differs."""


class ImagesResponse(BaseModel):
    """Pictures, the best first."""

    created: int
    """Time in seconds since 1970 at which the job was accepted."""
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: str
    size: str
    usage: Usage
    safety_identifier: str | None = None
    id: str
    """Extension. The job, for `/api/jobs`."""
    seed: str
    """Extension. The seed that was used; a string, since some languages read numbers exactly only up to 2^53."""


class ModelObject(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "smalti"
    description: str
    """Extension."""
    size: str
    """Extension. The size of its pictures."""


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class OpenAIError(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """The body of every status of 400 and above."""

    error: OpenAIError
