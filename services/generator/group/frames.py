"""What the processes of a group say to each other: a word, a few values, and at most one array.

A frame is a line of JSON, followed by the bytes of the array. Nothing in it is code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.requests import Candidate
from smalti.parameters import SamplingParameters

MAX_FRAME: Final = 2**26
"""Bytes of the largest frame; an encoding, the largest thing that is sent, has well below a megabyte."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One thing that is said."""

    do: str
    """What it says, such as "step"."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values for JSON, by name."""
    states: Float[np.ndarray, "positions d_model"] | None = None
    """The states of an encoding."""

    def to_bytes(self) -> bytes:
        """Returns the frame as it is sent."""
        header: dict[str, Any] = {"do": self.do, "values": dict(self.values)}
        if self.states is None:
            return json.dumps(header).encode()
        states = np.ascontiguousarray(self.states, "<f4")
        header["shape"] = states.shape
        return json.dumps(header).encode() + b"\n" + states.tobytes()

    @classmethod
    def parse(cls, content: bytes) -> "Frame":
        """Parses what `to_bytes` has returned; raises `ValueError` for anything else."""
        header, _, array = content.partition(b"\n")
        try:
            described = json.loads(header)
            shape = described.get("shape")
            states = None if shape is None else np.frombuffer(array, "<f4").reshape(shape).astype(np.float32)
            return cls(do=described["do"], values=described["values"], states=states)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a frame: {error!r}") from error


def encoding_frame(do: str, encoding: Encoding, **values: Any) -> Frame:
    """Returns a frame with an encoding."""
    mask = np.asarray(encoding.mask).astype(int).tolist()
    return Frame(do=do, values={**values, "mask": mask}, states=np.asarray(encoding.states))


def encoding_in(frame: Frame) -> Encoding:
    """Returns the encoding in a frame; raises `ValueError` if there is none."""
    if frame.states is None:
        raise ValueError(f"{frame.do} has no encoding")
    mask: Int[np.ndarray, " positions"] = np.array(frame.values["mask"], np.int32)
    return Encoding(frame.states, mask)


def candidate_values(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as values for JSON."""
    return {
        "seed": candidate.seed,
        "index": candidate.index,
        "sampling": candidate.sampling.every_value(),
        "given": list(candidate.given),
    }


def candidate_in(values: Mapping[str, Any]) -> Candidate:
    """Returns the candidate in `candidate_values`; raises `InvalidInputError` if a value is out of range."""
    return Candidate(
        values["seed"],
        values["index"],
        SamplingParameters.check(**values["sampling"]),
        given=tuple(values["given"]),
    )
