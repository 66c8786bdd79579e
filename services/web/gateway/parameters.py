"""The parameters that both APIs share, under the names of the client's options."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema

from smalti.client import GenerateOptions
from smalti.parameters import seed_of_digits
from smalti.validation import Strict

Seed = Annotated[
    int,
    BeforeValidator(seed_of_digits),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]{1,19}$"}]}),
]
"""A seed. A string of digits is taken too, as answers have it: JavaScript reads numbers exactly only up to 2^53."""


class DrawingParameters(Strict):
    """How pictures are drawn and chosen. What is missing takes the default of the model; the gateway checks ranges."""

    # Strict: a number that is sent as text is a mistake of the program.
    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    seed: Seed | None = None
    """Equal seeds give equal pictures; random if it is missing. A number, or a string of digits, as answers have it."""
    candidates: int | None = None
    """Number of pictures to draw, of which the best `n` are returned."""
    guidance_scale: float | None = None
    """How strongly the prompt is followed, from 0 to 100; 1 turns guidance off."""
    temperature: float | None = None
    """Divisor of the logits, from 0 to 100; 0 always takes the most probable tile."""
    top_k: int | None = None
    """Sample among the k most probable tiles; 0 for no limit."""
    top_p: float | None = None
    """Sample among the most probable tiles that together reach this probability; 1 for no limit."""
    layout_share: float | None = None
    """Share of the tiles, the first ones, to which the next two apply; 0 for none."""
    layout_temperature: float | None = None
    """The temperature of these tiles."""
    layout_guidance_scale: float | None = None
    """The guidance scale of these tiles."""
    vary: bool | None = None
    """Whether candidates differ in what the prompt leaves open, such as the style."""
    diversity: float | None = None
    """Weight of difference from each other when pictures are chosen, from 0 to 1; 0 chooses by score alone."""

    def drawing_options(self) -> GenerateOptions:
        """Returns these parameters as options of a job."""
        given = {name: getattr(self, name) for name in DrawingParameters.model_fields}
        options: GenerateOptions = {**given}  # type: ignore[typeddict-item]
        return options
