"""How callers say who they are: what `SMALTI_AUTH` says, or what follows from the address."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from smalti.errors import InvalidInputError
from smalti.network import is_this_machine
from smalti.rpc.settings import RpcSettings, variable
from smalti.services.gateway.database.tables import DEFAULT_TENANT
from smalti.services.gateway.identity.keys import check_tenant
from smalti.services.gateway.identity.principal import Principal, Role
from smalti.services.gateway.identity.tokens import Tokens
from smalti.services.gateway.settings import GATEWAY_PREFIX, GatewaySettings
from smalti.settings import PREFIX, Auth, listed, settings

log = logging.getLogger(__name__)

AUTH = f"{PREFIX}AUTH"
NAMES = f"{GATEWAY_PREFIX}AUTH_NAMES"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What shows who callers are."""

    ways: frozenset[Auth] = frozenset()
    """How callers may say who they are; with none, everybody may do everything."""
    tokens: Tokens | None = None
    """Reads tokens; None without `Auth.JWT`."""
    names: Mapping[str, Principal] = field(default_factory=dict)
    """The principals of certificates by their names. Without any, every certificate of the authority will do, unless
    there are also keys or tokens."""

    @classmethod
    def load(cls, settings: GatewaySettings, rpc: RpcSettings) -> Self:
        """Reads the settings, and the keys for tokens.

        Raises:
            InvalidInputError: a setting is invalid or missing; names the variable.
        """
        ways = chosen_ways(rpc)
        log.info("callers say who they are by: %s", ", ".join(sorted(ways)) or "nothing")
        return cls(
            ways=ways,
            tokens=Tokens(settings) if Auth.JWT in ways else None,
            names=principals_by_name(settings.auth_names),
        )


def chosen_ways(rpc: RpcSettings) -> frozenset[Auth]:
    """Returns how callers say who they are; nothing where everybody may do everything.

    Raises:
        InvalidInputError: that is not decided, and others can reach the port; or mTLS is chosen, and not set up.
    """
    ways = settings().auth_ways
    if not ways and rpc.tls_client_ca is not None:
        ways = frozenset({Auth.MTLS})
    if not ways and not is_this_machine(rpc.host):
        raise InvalidInputError(
            AUTH,
            f"is not set, and {variable('host')}={rpc.host} lets others call; set it to keys, mtls or jwt, or to none "
            "if everybody who reaches the port may draw, and see, cancel and delete every job",
        )
    if Auth.MTLS in ways and rpc.tls_client_ca is None:
        raise InvalidInputError(variable("tls_client_ca"), f"is not set, and {AUTH} has mtls; set it")
    if Auth.NONE in ways and not is_this_machine(rpc.host):
        log.warning("%s=none: everybody who reaches %s may draw, and see every job", AUTH, rpc.host)
    return ways - {Auth.NONE}


def principals_by_name(text: str) -> Mapping[str, Principal]:
    """Returns the principals of certificates by their names, from entries such as `NAME=TENANT:draw+batch`.

    Raises:
        InvalidInputError: an entry has another form.
    """
    found = {}
    for entry in listed(text):
        name, equals, rest = entry.rpartition("=")
        tenant, colon, roles = rest.partition(":")
        if not name or not equals:
            raise InvalidInputError(
                NAMES, f"must be a list of NAME=TENANT or NAME=TENANT:ROLE+ROLE, got {entry!r}"
            )
        found[name] = Principal(
            tenant=check_tenant(tenant, NAMES),
            roles=_roles(roles) if colon else frozenset({Role.DRAW, Role.BATCH}),
            name=f"certificate {name}",
        )
    return found


def holder(name: str) -> Principal:
    """Returns the principal of any certificate, where no names are given: its authority vouches for it."""
    return Principal(
        tenant=DEFAULT_TENANT, roles=frozenset({Role.DRAW, Role.BATCH}), name=f"certificate {name}".strip()
    )


def _roles(text: str) -> frozenset[Role]:
    roles = frozenset(text.split("+"))
    if wrong := roles - {role.value for role in Role if role is not Role.WEB}:
        raise InvalidInputError(NAMES, f"{sorted(wrong)[0]!r} must be one of draw, batch, admin")
    return frozenset(Role(each) for each in roles)
