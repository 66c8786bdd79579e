"""Hooks: policies in a Python package, or behind a gRPC address."""

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol, runtime_checkable

from smalti.errors import InvalidInputError
from smalti.policy import ENTRY_POINTS, PicturesToCheck, PictureToCheck, Policy, PromptToCheck, Verdict
from smalti.rpc.channel import blocking_channel
from smalti.rpc.errors import shortened, translated
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.settings import GATEWAY_PREFIX
from smalti.v1 import policy_pb2
from smalti.v1.model_pb2 import ModelReference
from smalti.v1.policy_pb2_grpc import PolicyServiceStub

VARIABLE: Final = f"{GATEWAY_PREFIX}POLICY_HOOK"
MAX_MESSAGE_LENGTH: Final = 200
"""Maximum length of what a hook says to callers, in bytes."""
MAX_CALL_BYTES: Final = 3 * 2**20
"""Maximum size of the pictures of a call, unless it has only one; most servers accept messages of 4 MiB."""
MEDIA_TYPE: Final = "image/png"

_NAME = re.compile(r"[\w.-]+")


@runtime_checkable
class Hook(Protocol):
    """A policy with an end."""

    def check_prompt(self, asked: PromptToCheck, timeout: float) -> Verdict:
        """Returns the verdict on a prompt; raises any exception if there is none."""
        ...

    def check_pictures(self, asked: PicturesToCheck, timeout: float) -> Sequence[Verdict]:
        """Returns the verdicts on pictures; raises any exception if there are none."""
        ...

    def close(self) -> None:
        """Frees what the hook holds."""
        ...


def open_hook(setting: str, settings: RpcSettings) -> Hook:
    """Returns the hook that a setting names: an address, or an entry point.

    Args:
        setting: `HOST:PORT`, or the name of an entry point of the group `smalti.policies`.
        settings: the settings of gRPC channels.

    Raises:
        InvalidInputError: there is no such entry point, it fails, or the address is invalid.
    """
    if _NAME.fullmatch(setting):
        return EntryPointHook(_load(setting))
    try:
        return RemoteHook(setting, settings)
    except InvalidInputError as error:
        if error.field != "server":
            raise
        raise InvalidInputError(VARIABLE, f"{error.problem}, or be the name of an entry point") from None


def _load(name: str) -> Policy:
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise InvalidInputError(
            VARIABLE,
            f"no installed package has the entry point {name!r} in {ENTRY_POINTS}; there are: {known}",
        )
    try:
        policy: Policy = found[name].load()()
    except Exception as error:
        raise InvalidInputError(VARIABLE, f"the entry point {name!r} fails ({error!r})") from error
    for method in ("check_prompt", "check_pictures"):
        if not callable(getattr(policy, method, None)):
            raise InvalidInputError(VARIABLE, f"the policy of the entry point {name!r} has no {method}")
    return policy


class EntryPointHook:
    """A policy in this process. Nothing can stop a call of it, so whoever calls it waits no longer than it wants to."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def check_prompt(self, asked: PromptToCheck, timeout: float) -> Verdict:  # noqa: D102
        return _checked(self._policy.check_prompt(asked))

    def check_pictures(self, asked: PicturesToCheck, timeout: float) -> Sequence[Verdict]:  # noqa: D102
        return [_checked(verdict) for verdict in self._policy.check_pictures(asked)]

    def close(self) -> None:
        """Closes the policy, if it can be closed."""
        close = getattr(self._policy, "close", None)
        if callable(close):
            close()


class RemoteHook:
    """A policy behind an address."""

    def __init__(self, address: str, settings: RpcSettings) -> None:
        """Connects when it is first asked; raises `InvalidInputError` if the address is invalid."""
        self._channel = blocking_channel(address, settings)
        self._stub = PolicyServiceStub(self._channel)

    def check_prompt(self, asked: PromptToCheck, timeout: float) -> Verdict:  # noqa: D102
        request = policy_pb2.CheckPromptRequest(
            prompt=asked.prompt,
            labels=asked.labels,
            model=ModelReference(name=asked.model, revision=asked.revision),
        )
        with translated():
            return _verdict(self._stub.CheckPrompt(request, timeout=timeout).verdict)

    def check_pictures(self, asked: PicturesToCheck, timeout: float) -> Sequence[Verdict]:
        """Asks in several calls if the pictures are too large for one."""
        verdicts: list[Verdict] = []
        for pictures in _batches(asked.pictures):
            request = policy_pb2.CheckPicturesRequest(
                job_id=asked.job_id,
                prompt=asked.prompt,
                labels=asked.labels,
                model=ModelReference(name=asked.model, revision=asked.revision),
                pictures=[
                    policy_pb2.PictureToCheck(
                        candidate=each.candidate,
                        data=each.content,
                        media_type=MEDIA_TYPE,
                        unfinished=each.unfinished,
                    )
                    for each in pictures
                ],
            )
            with translated():
                answer = self._stub.CheckPictures(request, timeout=timeout)
            if len(answer.verdicts) != len(pictures):
                raise ValueError(f"{len(pictures)} pictures have {len(answer.verdicts)} verdicts")
            verdicts += map(_verdict, answer.verdicts)
        return verdicts

    def close(self) -> None:  # noqa: D102
        self._channel.close()


def _batches(pictures: Sequence[PictureToCheck]) -> Iterator[Sequence[PictureToCheck]]:
    batch: list[PictureToCheck] = []
    size = 0
    for picture in pictures:
        if batch and size + len(picture.content) > MAX_CALL_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(picture)
        size += len(picture.content)
    if batch:
        yield batch


def _verdict(message: policy_pb2.PolicyVerdict) -> Verdict:
    return Verdict(refused=message.refused, message=shortened(message.message, MAX_MESSAGE_LENGTH))


def _checked(verdict: object) -> Verdict:
    """Returns the verdict of a foreign package, if it is one; raises `TypeError`."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the policy must return a Verdict, not {type(verdict).__name__}")
    return Verdict(refused=bool(verdict.refused), message=shortened(str(verdict.message), MAX_MESSAGE_LENGTH))
