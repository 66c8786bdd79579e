"""Where notices may be sent: tenants choose it, and must not reach what only the gateway reaches."""

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

from smalti.errors import InvalidInputError
from smalti.services.gateway.database.tables import MAX_URL_LENGTH

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64: Final = ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def check_url(url: str, field: str, *, private: bool) -> str:
    """Returns a URL to which notices may be sent, as far as that can be said without looking up its name.

    Args:
        url: the URL.
        field: the name of the value, for the error.
        private: whether private addresses, and http, are allowed.

    Raises:
        InvalidInputError: it is not allowed.
    """
    if len(url) > MAX_URL_LENGTH:
        raise InvalidInputError(field, f"must have at most {MAX_URL_LENGTH} characters, got {len(url)}")
    if not url.isascii() or any(each.isspace() or not each.isprintable() for each in url):
        raise InvalidInputError(field, "must be a URL of printable ASCII characters, without spaces")
    schemes = ("https", "http") if private else ("https",)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidInputError(field, f"is not a valid URL: {url!r:.80}") from None
    if parts.scheme not in schemes or not host:
        raise InvalidInputError(field, f"must be an https URL, got {url!r:.80}")
    if parts.username is not None or parts.fragment:
        raise InvalidInputError(field, "must have no user, password or fragment")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return url
    if not private and not is_public(address):
        raise InvalidInputError(field, f"{host} is not a public address; see SMALTI_WEBHOOK_PRIVATE")
    return url


def host_of(url: str) -> str:
    """Returns the host of a URL that was checked, with its port if it has one."""
    return urlsplit(url).netloc.lower()


def is_public(address: Any) -> bool:
    """Returns whether an IP address can be reached from everywhere; one in which another is hidden is as that one."""
    if isinstance(address, ipaddress.IPv6Address):
        if hidden := _hidden(address):
            return is_public(hidden)
        if address in _LOCAL_NAT64 or address.is_site_local:
            return False
    return bool(address.is_global and not address.is_multicast and not address.is_reserved)


def _hidden(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Returns the IPv4 address that an IPv6 address leads to, if there is one."""
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
