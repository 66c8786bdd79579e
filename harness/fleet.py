"""Workers that say hello to a gateway without being there, and revisions of models without weights."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from harness.gateway import GatewayHarness
from smalti.messages import KEY_LENGTH, Hello, Stage
from smalti.services.gateway.models import ModelCard
from smalti.v1 import model_pb2

STAGES = (Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK)
INTERVAL = 5.0
"""Seconds between two hellos."""


def card_of(gateway: GatewayHarness) -> ModelCard:
    """Returns the card of a gateway's own model."""
    return gateway.gateway.context.catalogue.fleet.configured.card


def another_card(card: ModelCard, digit: str, *, shares_pictures: bool = True, **changes: Any) -> ModelCard:
    """Returns another revision of a model, whose revision consists of one digit.

    Args:
        card: a revision of the model.
        digit: the digit.
        shares_pictures: whether it has the same VQGAN and CLIP.
        changes: fields of its description that differ; `name` is the name of another model.
    """
    message = model_pb2.Model()
    message.CopyFrom(card.message)
    message.reference.revision = f"sha256:{64 * digit}"
    message.reference.name = changes.pop("name", message.reference.name)
    for name, value in changes.items():
        setattr(message, name, value)
    own = (Stage.ENCODE, Stage.GENERATE) if shares_pictures else STAGES
    parts = {**card.parts, **dict.fromkeys(own, KEY_LENGTH * digit)}
    return replace(card, message=message, parts=parts)


def hello(card: ModelCard, stage: Stage, *, worker: str = "", **changes: Any) -> Hello:
    """Returns the hello of a worker of a stage; `worker` tells it from others of the stage."""
    name = f"{card.revision} {stage} {worker}"
    fields: dict[str, Any] = {
        "worker": hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(),
        "stage": stage,
        "key": card.parts[stage],
        "model": card.name,
        "revision": card.revision,
        "slots": 8,
        "concurrency": 2,
        "device": "cpu",
        "code": "0.3.0",
        "reads": 3,
        "address": "",
        "interval": INTERVAL,
        "sent": 0.0,
    }
    if stage is Stage.ENCODE:
        fields |= {"card": base64.b64encode(card.content).decode(), "parts": dict(card.parts)}
    return Hello(**{**fields, **changes})


def say_hello(
    gateway: GatewayHarness, *cards: ModelCard, stages: Iterable[Stage] = STAGES, **changes: Any
) -> None:
    """Lets the workers of revisions say hello, and the gateway look at its models."""
    gateway.clock.advance(0.001)
    for card in cards:
        for stage in stages:
            gateway.gateway.hellos.add(hello(card, stage, **{"sent": gateway.clock(), **changes}))
    gateway.gateway.look_at_models()


def say_goodbye(gateway: GatewayHarness, card: ModelCard, stages: Iterable[Stage] = STAGES) -> None:
    """Lets the workers of a revision say that they stop."""
    say_hello(gateway, card, stages=stages, leaving=True)
