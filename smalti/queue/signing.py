"""Signed messages: what is signed, and who may send what.

Celery signs the body of a message alone. So the body of a signed message repeats what its headers say and where it
goes, as its *seal*, and only the seal is believed. The name of a trusted certificate's file says whose key it is, and
each service may send only what it has to send.
"""

import logging
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from celery.exceptions import SecurityError
from celery.security.certificate import Certificate
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer
from celery.security.utils import reraise_errors
from kombu.serialization import disable_insecure_serializers, loads, register
from kombu.utils.encoding import bytes_to_str
from pydantic import Field, ValidationError

from smalti.errors import InvalidInputError, MalformedMessageError
from smalti.messages import QUEUE_PREFIX, Event, Hello, Message, Stage
from smalti.network import warn_of_open_key
from smalti.queue.settings import BROKER_PREFIX, BrokerSettings
from smalti.validation import Strict

logger = logging.getLogger(__name__)

SIGNED_TYPE: Final = "application/data"
"""The content type of signed messages."""
SEAL: Final = "seal"
"""The argument of a Celery task that holds the seal."""
SIGNER: Final = "signer"
"""The argument that holds who has signed the message; set when the signature is checked, whatever was sent."""
ANYONE: Final = "all"
"""The name of a key that may send everything, for a system with one key."""

# Each service repeats messages of its own queues, and reports to the gateway.
_NEXT: Final[Mapping[str, tuple[Stage, ...]]] = {
    "gateway": (Stage.ENCODE, Stage.REFINE, Stage.EVENTS),
    "encoder": (Stage.GENERATE, Stage.ENCODE, Stage.EVENTS),
    "generator": (Stage.DECODE, Stage.ENCODE, Stage.GENERATE, Stage.EVENTS),
    "decoder": (Stage.RANK, Stage.ENCODE, Stage.DECODE, Stage.EVENTS),
    "ranker": (Stage.REFINE, Stage.ENCODE, Stage.RANK, Stage.EVENTS),
    "refiner": (Stage.ENCODE, Stage.REFINE, Stage.EVENTS),
}
"""The stages whose queues a service writes to. A chunk or a shard whose objects are lost goes back to the encoder."""
_STAGES: Final[Mapping[str, Stage]] = {
    "encoder": Stage.ENCODE,
    "generator": Stage.GENERATE,
    "decoder": Stage.DECODE,
    "ranker": Stage.RANK,
    "refiner": Stage.REFINE,
}
"""The stage of each service that reports events."""


class Seal(Strict):
    """What the signature covers beside the message itself."""

    queue: str
    """The queue that the message was sent to."""
    redeliveries: Annotated[int, Field(ge=0)] = 0
    sent: float
    """Unix time of its sending."""

    def is_for(self, queue: str) -> bool:
        """Returns whether it is for a queue; one of version 0.1 that was moved to the new name still is."""
        return self.queue in (queue, queue.removeprefix(QUEUE_PREFIX))


def check_seal(options: Mapping[str, Any], queue: str) -> Seal:
    """Returns the seal of a signed message.

    Args:
        options: the named arguments of the Celery task.
        queue: the queue that has delivered the message.

    Raises:
        MalformedMessageError: there is no seal, or it is for another queue.
    """
    try:
        seal = Seal.model_validate(options.get(SEAL))
    except ValidationError:
        raise MalformedMessageError("the signature does not cover the headers") from None
    if not seal.is_for(queue):
        raise MalformedMessageError(f"the message was signed for the queue {seal.queue[:64]!r}")
    return seal


def check_sender(signer: str | None, message: Message | Hello) -> None:
    """Checks that a service may send a message.

    Args:
        signer: the service whose key has signed it; None if messages are not signed.
        message: the message.

    Raises:
        MalformedMessageError: it may not.
    """
    if signer is None or signer == ANYONE:
        return
    is_allowed = message.stage_queue in _NEXT.get(signer, ())
    if is_allowed and isinstance(message, Event) and signer != "gateway":
        # The gateway repeats the events of its queue, whoever has sent them.
        is_allowed = message.stage is _STAGES[signer]
    elif isinstance(message, Hello):
        is_allowed = message.stage is _STAGES.get(signer)
    if not is_allowed:
        raise MalformedMessageError(f"the key of the {signer} must not send this message")


class TrustedCertificates:
    """The certificates of a folder, by their ids. They are read again when the folder changes; thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Reads them.

        Raises:
            InvalidInputError: there are none, one cannot be read, or the name of a file says nobody.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._seen = self._look()
        self._known = self._read()

    def find(self, certificate_id: str | bytes) -> tuple[Certificate, str]:
        """Returns a certificate and whose it is; raises `SecurityError` if it is not trusted, or has expired."""
        with self._lock:
            if (now := self._look()) != self._seen:
                self._read_again(now)
            found = self._known.get(bytes_to_str(certificate_id))
        if found is None:
            raise SecurityError("the certificate of the signature is not trusted")
        if found[0].has_expired():
            raise SecurityError("the certificate of the signature has expired")
        return found

    def _read_again(self, now: tuple[tuple[str, int, int], ...]) -> None:
        try:
            self._known = self._read()
        except InvalidInputError as error:
            logger.error("the changed certificates are not used, those before still are: %s", error)
        self._seen = now

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        try:
            found = [(path.name, path.stat()) for path in sorted(self._folder.glob("*.pem"))]
        except OSError:
            return ()
        return tuple((name, state.st_mtime_ns, state.st_ino) for name, state in found)

    def _read(self) -> dict[str, tuple[Certificate, str]]:
        variable = f"{BROKER_PREFIX}SIGNING_TRUSTED"
        known = {}
        for path in sorted(self._folder.glob("*.pem")):
            owner = path.stem.partition("-")[0]
            if owner not in (ANYONE, *_NEXT):
                names = ", ".join((*_NEXT, ANYONE))
                raise InvalidInputError(
                    variable, f"the name of {path} must begin with whose certificate it is: {names}"
                )
            try:
                certificate = Certificate(path.read_text(encoding="ascii"))
            except Exception as error:
                raise InvalidInputError(variable, f"{path} is not a certificate ({error})") from None
            known[certificate.get_id()] = (certificate, owner)
            _warn_of_writable(variable, path)
        if not known:
            raise InvalidInputError(variable, f"{self._folder} has no certificates (*.pem)")
        _warn_of_writable(variable, self._folder)
        return known


class SealingSerializer(SecureSerializer):
    """Celery's serializer, which also says who has signed."""

    def __init__(self, key: PrivateKey, certificate: Certificate, trusted: TrustedCertificates) -> None:
        super().__init__(key, certificate, None, "sha256")
        self._trusted = trusted

    def deserialize(self, data: Any) -> Any:
        """Returns the body of a message, with its signer among the named arguments; raises `SecurityError`."""
        with reraise_errors("Unable to deserialize: {0!r}", (Exception,)):
            message = self._unpack(data)
            certificate, signer = self._trusted.find(message["signer"])
            certificate.verify(message["body"], message["signature"], self._digest)
        # Celery decodes the body by its content type, which is not signed and may say pickle.
        body = loads(message["body"], "application/json", "utf-8", force=True)
        if not (isinstance(body, list) and len(body) == 3 and isinstance(body[1], dict)):
            raise SecurityError("the message is not a Celery task")
        body[1][SIGNER] = signer
        return body


def seal(settings: BrokerSettings, queue: str, redeliveries: int, sent: float) -> dict[str, Any]:
    """Returns the named arguments of a Celery task: the seal, if messages are signed."""
    if not settings.signed:
        return {}
    return {SEAL: Seal(queue=queue, redeliveries=redeliveries, sent=sent).model_dump()}


def use_signatures(settings: BrokerSettings) -> None:
    """Makes this process sign its messages, and refuse messages without a trusted signature.

    Raises:
        InvalidInputError: a key or a certificate cannot be used; names the variable.
    """
    if (
        settings.signing_key is None
        or settings.signing_certificate is None
        or settings.signing_trusted is None
    ):
        return
    warn_of_open_key(f"{BROKER_PREFIX}SIGNING_KEY", settings.signing_key)
    trusted = TrustedCertificates(settings.signing_trusted)
    try:
        serializer = SealingSerializer(
            PrivateKey(settings.signing_key.read_text()),
            Certificate(settings.signing_certificate.read_text()),
            trusted,
        )
    except Exception as error:
        raise InvalidInputError(
            f"{BROKER_PREFIX}SIGNING_KEY", f"message signing cannot be set up: {error}"
        ) from error
    # What Celery's `setup_security` does, whose own serializer would be there for a moment.
    disable_insecure_serializers()
    register(
        "auth",
        serializer.serialize,
        serializer.deserialize,
        content_type=SIGNED_TYPE,
        content_encoding="utf-8",
    )


def _warn_of_writable(variable: str, path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        logger.warning(
            "%s: others can change what is trusted in %s (mode %o); chmod go-w it", variable, path, mode
        )
