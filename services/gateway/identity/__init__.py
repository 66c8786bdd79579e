"""Who calls the gateway, and what they may do: keys, certificates and tokens, and the table of roles."""

from smalti.services.gateway.identity.gatekeeper import Gatekeeper, check_priority, report_admin
from smalti.services.gateway.identity.keys import KeyRepository
from smalti.services.gateway.identity.principal import ANYONE, Principal, Role, current_principal
from smalti.services.gateway.identity.tenants import LIMITS, TenantRepository
from smalti.services.gateway.identity.ways import Evidence

__all__ = [
    "ANYONE",
    "LIMITS",
    "Evidence",
    "Gatekeeper",
    "KeyRepository",
    "Principal",
    "Role",
    "TenantRepository",
    "check_priority",
    "current_principal",
    "report_admin",
]
