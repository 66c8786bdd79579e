"""Which decoder renders the previews of a job and encodes initial images: one with the VQGAN of its revision."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from smalti.errors import InvalidInputError
from smalti.messages import Stage
from smalti.services.gateway.models import Catalogue, ModelCard

if TYPE_CHECKING:
    from smalti.v1.decoder_pb2_grpc import DecoderServiceAsyncStub

log = logging.getLogger(__name__)

Connect = Callable[[str], "DecoderServiceAsyncStub"]
"""Opens a channel to a decoder, given `HOST:PORT`; raises `InvalidInputError` if that is invalid."""


class Decoder(NamedTuple):
    """A decoder, and what it needs to be told."""

    stub: "DecoderServiceAsyncStub"
    key: str
    """Key of the VQGAN with which it must decode."""


class Decoders:
    """The decoders that can be called. Only the event loop may use it."""

    def __init__(
        self,
        catalogue: Catalogue,
        configured: "DecoderServiceAsyncStub | None" = None,
        connect: Connect | None = None,
    ) -> None:
        """Creates them.

        Args:
            catalogue: knows the decoders that have said hello.
            configured: the decoder of the settings, which serves the configured model; None if none is set.
            connect: opens channels to other decoders; None for a gateway that calls no other.
        """
        self._catalogue = catalogue
        self._configured = configured
        self._connect = connect
        self._stubs: dict[str, DecoderServiceAsyncStub] = {}
        self._calls = 0

    def of(self, card: ModelCard) -> Decoder | None:
        """Returns a decoder for the image tokens of a revision, each in turn; None if there is none."""
        fleet, key = self._catalogue.fleet, card.parts[Stage.DECODE]
        if self._configured is not None and card.has_same_tokens(fleet.configured.card):
            return Decoder(self._configured, key)
        addresses = fleet.decoders(card)
        if not addresses or self._connect is None:
            return None
        self._calls += 1
        address = addresses[self._calls % len(addresses)]
        if address not in self._stubs:
            there = fleet.addresses
            self._stubs = {each: stub for each, stub in self._stubs.items() if each in there}
            try:
                self._stubs[address] = self._connect(address)
            except InvalidInputError as error:
                log.warning("a decoder says that its address is %s: %s", address, error.problem)
                return None
        return Decoder(self._stubs[address], key)
