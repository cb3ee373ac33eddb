"""Which IP addresses are of the public internet, and which others the user allows.

The tables are IANA's registries of special-purpose addresses (RFC 6890 and what was added until 2025), written out here
because `ipaddress` knows fewer of them, and other ones in each version of Python. Whatever is special is not public,
also where it is reachable: no image lies there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

_SPECIAL_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # in no registry: what each machine of Azure reaches its host by
        ),
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given away as global unicast
_SPECIAL_6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),  # with Teredo and 6to4
    )
)
# What carries an IPv4 address in its last 32 bits, and is judged by that: mapped ones (RFC 4291), NAT64 (RFC 6052).
_CARRIERS = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # before the IPv4 address in the last 64 bits (RFC 5214)
_NAME = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also by the IPv4 address that an IPv6 one may carry."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _SPECIAL_4)
    if parsed is None:
        return False
    last = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    if any(parsed in network for network in _CARRIERS):
        return is_public(str(last))
    if parsed not in _GLOBAL_6 or any(parsed in network for network in _SPECIAL_6):
        return False
    return (int(parsed) >> 32) & 0xFFFFFFFF not in _ISATAP or is_public(str(last))


@dataclass(frozen=True)
class Intranet:
    """Hosts by their names, and networks, that the user allows besides the public internet."""

    names: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Intranet:
        """From names (`images.corp`, `.corp` for all below it), addresses and networks. Raises ValueError."""
        names, networks = set[str](), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError as error:
                if not _NAME.fullmatch(entry.lower()) or entry.replace(".", "").isdecimal():
                    raise ValueError(
                        f"`{entry[:80]}` is neither the name of a host, nor an address or a network; write "
                        "`images.corp`, `.corp`, `10.1.2.3` or `10.1.0.0/16`"
                    ) from error
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def has_name(self, host: str) -> bool:
        """Whether a host is allowed by its name, whatever its address is."""
        name = host.lower().rstrip(".")
        _, *above = name.split(".")
        return name in self.names or any(f".{'.'.join(above[n:])}" in self.names for n in range(len(above)))

    def has_address(self, address: str) -> bool:
        """Whether an address is allowed; one that carries an IPv4 address by that."""
        parsed = _parsed(address)
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return parsed is not None and any(parsed in network for network in self.networks)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
