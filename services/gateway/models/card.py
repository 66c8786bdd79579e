"""The card of a revision of a model: what the gateway must know of it. It comes from a folder, or from an encoder."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from google.protobuf.message import DecodeError

from smalti.messages import Stage
from smalti.parameters import SamplingParameters
from smalti.registry.routes import route_keys
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import sampling_of
from smalti.service.model import model_card
from smalti.v1 import model_pb2

STAGES: Final = (Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK)
"""The stages that every job needs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelCard:
    """A revision of a model."""

    message: model_pb2.Model
    """Its description with the vocabulary, without limits and without what can be drawn now."""
    parts: Mapping[Stage, str]
    """Keys of the queues of its stages."""

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Returns the card of a model folder; raises `ModelError` if one of its files is invalid."""
        return cls(message=model_card(spec), parts=route_keys(spec.folder))

    @classmethod
    def parse(cls, card: bytes, parts: Mapping[str, str]) -> Self:
        """Returns the card that an encoder has sent; parts of unknown stages are left out.

        Raises:
            ValueError: it is damaged, or does not describe a model.
        """
        try:
            message = model_pb2.Model.FromString(card)
        except DecodeError as error:
            raise ValueError("the card of the model is damaged") from error
        known = {Stage(name): key for name, key in parts.items() if name in list(Stage)}
        if not message.reference.name or not message.reference.revision:
            raise ValueError("the card of the model has no name or no revision")
        if message.rows < 1 or message.rows != message.columns or message.image_width < message.rows:
            raise ValueError("the card of the model has no sizes")
        if missing := [stage.value for stage in STAGES if stage not in known]:
            raise ValueError(f"the card of the model has no key for {missing[0]}")
        return cls(message=message, parts=known)

    @cached_property
    def content(self) -> bytes:
        """The serialized message."""
        return self.message.SerializeToString(deterministic=True)

    @cached_property
    def digest(self) -> str:
        """Identifies the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.message.reference.name

    @property
    def revision(self) -> str:
        """Revision of the model."""
        return self.message.reference.revision

    @property
    def side(self) -> int:
        """Tiles along each side of a picture."""
        return self.message.rows

    @property
    def tokens(self) -> int:
        """Image tokens per picture."""
        return self.side**2

    @property
    def codebook_size(self) -> int:
        """Number of different image tokens."""
        return self.message.codebook_size

    @property
    def resolution(self) -> int:
        """Width and height of a picture, in pixels."""
        return self.message.image_width

    @property
    def sampling(self) -> SamplingParameters:
        """Default sampling parameters."""
        return sampling_of(self.message.sampling, SamplingParameters())

    @property
    def refiner_revision(self) -> str | None:
        """Revision of the refiner; None if the model has none."""
        return self.message.refiner.revision if self.message.HasField("refiner") else None

    @property
    def trained_upscale(self) -> int | None:
        """Factor by which the refiner was trained to enlarge pictures; None if the model has none."""
        return self.message.refiner.upscale if self.message.HasField("refiner") else None

    def has_same_tokens(self, other: "ModelCard") -> bool:
        """Returns whether the image tokens of two revisions mean the same pictures."""
        return self.parts[Stage.DECODE] == other.parts[Stage.DECODE]
