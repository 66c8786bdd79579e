"""The models that the gateway offers, remembered for a few seconds, for each caller."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from smalti.client import AsyncClient
from smalti.errors import ModelNotFoundError, UnavailableError
from smalti.services.web.gateway.caller import current_caller
from smalti.v1.model_pb2 import Model

FRESH_SECONDS: Final = 3.0
"""Time for which the models are remembered."""
MAX_CALLERS: Final = 1000
"""Number of callers for whom they are remembered."""


@dataclass
class _Offer:
    """What a caller may draw with."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    models: dict[str, Model] = field(default_factory=dict)
    until: float = 0.0


class Catalogue:
    """The models of the gateway. Only the event loop may use it."""

    def __init__(self, client: AsyncClient) -> None:
        """Asks the gateway when it is first used."""
        self._client = client
        self._offers: OrderedDict[str, _Offer] = OrderedDict()
        self._described: dict[tuple[str, str], Model] = {}

    async def models(self) -> list[Model]:
        """Returns the models, without their vocabularies.

        Raises:
            SmaltiError: the gateway does not answer.
        """
        # The gateway looks at the key of each caller; what it has told one of them is not for the others.
        caller = current_caller.get(None)
        name = caller.authorization if caller else ""
        offer = self._offers.setdefault(name, _Offer())
        self._offers.move_to_end(name)
        if len(self._offers) > MAX_CALLERS:
            self._offers.popitem(last=False)
        async with offer.lock:
            if time.monotonic() >= offer.until:
                offer.models = _by_name([model async for model in self._client.models()])
                offer.until = time.monotonic() + FRESH_SECONDS
        return list(offer.models.values())

    async def find(self, name: str | None) -> Model:
        """Returns a model; the default one for None.

        Raises:
            ModelNotFoundError: there is no such model; says which there are.
            SmaltiError: the gateway does not answer.
        """
        models = await self.models()
        found = next(
            (each for each in models if (each.default if name is None else each.reference.name == name)), None
        )
        if found is None:
            if name is None:
                raise UnavailableError("the gateway has no model at the moment; try again")
            there = ", ".join(sorted(each.reference.name for each in models))
            raise ModelNotFoundError(f"there is no model {name!r:.100}; there is {there}", name[:100])
        return found

    async def described(self, name: str | None) -> Model:
        """Returns a model with its vocabulary; the default one for None.

        Raises:
            ModelNotFoundError: there is no such model; says which there are.
            SmaltiError: the gateway does not answer.
        """
        model = await self.find(name)
        # The limits and defaults may change at any time; the words belong to the revision.
        key = (model.reference.name, model.reference.revision)
        if key not in self._described:
            described = await self._client.model(*key)
            self._described = {other: each for other, each in self._described.items() if other[0] != key[0]}
            self._described[key] = described
        found = Model()
        found.CopyFrom(model)
        found.vocabulary.CopyFrom(self._described[key].vocabulary)
        return found


def _by_name(models: list[Model]) -> dict[str, Model]:
    """Returns one revision of each model: the one that draws the most, as a new job is likely to get it."""
    found: dict[str, Model] = {}
    for model in models:
        before = found.get(model.reference.name)
        if before is None or model.slots > before.slots:
            found[model.reference.name] = model
    return found
