"""Principals, their roles, and the table of the roles that each call needs."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from smalti.errors import PermissionDeniedError
from smalti.parameters import Priority
from smalti.services.gateway.database.tables import DEFAULT_TENANT


class Role(StrEnum):
    """What a principal may do."""

    DRAW = "draw"
    """Create jobs; see, watch, cancel and delete those of the tenant."""
    BATCH = "batch"
    """The same with jobs of priority batch, and no others."""
    ADMIN = "admin"
    """Everything, with the jobs of all tenants."""
    WEB = "web"
    """Of the web service itself: read the pictures that its signed addresses name, of all tenants."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who makes a call."""

    tenant: str
    roles: frozenset[Role]
    name: str
    """For the audit log, such as "key 0123456789ab"."""

    @property
    def scope(self) -> str | None:
        """The tenant whose jobs are visible, all others are not found; None if those of all tenants are.

        The table of roles says what the web service may do with them.
        """
        return self.tenant if self.roles.isdisjoint({Role.ADMIN, Role.WEB}) else None


ANYONE: Final = Principal(tenant=DEFAULT_TENANT, roles=frozenset(Role) - {Role.WEB}, name="anyone")
"""Everybody, where nobody says who they are."""

_CALLERS: Final = frozenset({Role.DRAW, Role.BATCH, Role.ADMIN})
ROLES: Final[Mapping[str, frozenset[Role]]] = {
    "/smalti.v1.ImageService/CreateImages": _CALLERS,
    "/smalti.v1.ImageService/GetJob": _CALLERS | {Role.WEB},
    "/smalti.v1.ImageService/ListJobs": _CALLERS,
    "/smalti.v1.ImageService/CancelJob": _CALLERS,
    "/smalti.v1.ImageService/DeleteJob": _CALLERS,
    "/smalti.v1.ImageService/WatchJob": _CALLERS,
    "/smalti.v1.ImageService/DownloadImages": _CALLERS | {Role.WEB},
    "/smalti.v1.ImageService/ListModels": _CALLERS | {Role.WEB},
    "/smalti.v1.ImageService/GetModel": _CALLERS | {Role.WEB},
    "/smalti.v1.FileService/CreateFile": _CALLERS,
    "/smalti.v1.FileService/FinishFile": _CALLERS,
    "/smalti.v1.FileService/UploadFile": _CALLERS,
    "/smalti.v1.FileService/ComposeFile": _CALLERS,
    "/smalti.v1.FileService/GetFile": _CALLERS,
    "/smalti.v1.FileService/ListFiles": _CALLERS,
    "/smalti.v1.FileService/DeleteFile": _CALLERS,
    "/smalti.v1.FileService/DownloadFile": _CALLERS,
    "/smalti.v1.BatchService/CreateBatch": frozenset({Role.BATCH, Role.ADMIN}),
    **{
        f"/smalti.v1.BatchService/{name}": _CALLERS
        for name in (
            *("GetBatch", "ListBatches", "WatchBatch", "PauseBatch", "ResumeBatch", "CancelBatch"),
            *("DeleteBatch", "ListBatchFiles", "DownloadBatchFile"),
        )
    },
}
"""For each method, the roles of which one is enough. A method that is not here is refused."""
PRIORITY_ROLES: Final[Mapping[Priority, frozenset[Role]]] = {
    Priority.INTERACTIVE: frozenset({Role.DRAW, Role.ADMIN}),
    Priority.BATCH: frozenset({Role.BATCH, Role.ADMIN}),
}
"""For each priority of a new job, the roles of which one is enough."""

principal_of_call: ContextVar[Principal] = ContextVar("principal_of_call")


def current_principal() -> Principal:
    """Returns who makes the current call.

    Raises:
        LookupError: nobody has asked; a server without a `Gatekeeper` serves nobody.
    """
    return principal_of_call.get()


def check_role(principal: Principal, needed: frozenset[Role] | None, what: str) -> None:
    """Raises `PermissionDeniedError` unless a principal has one of the roles; None for what nobody may do."""
    if needed is None:
        raise PermissionDeniedError(f"nobody may call {what}")
    if principal.roles.isdisjoint(needed):
        roles = ", ".join(sorted(principal.roles)) or "none"
        raise PermissionDeniedError(
            f"{what} needs the role {' or '.join(sorted(needed - {Role.WEB}))}; {principal.name} has {roles}"
        )
