"""Addresses: what a server binds to is not always what others can reach."""

from __future__ import annotations

import socket

EVERYWHERE = ("", "0.0.0.0", "::")


def reachable(host: str) -> str:
    """`host`, or this node's own address where `host` means every interface. Sends nothing."""
    if host not in EVERYWHERE:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): only asks the routing table
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def bracketed(host: str) -> str:
    """`host` as it stands in a URL: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host else host
