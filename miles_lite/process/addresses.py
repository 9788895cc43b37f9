"""Nodes: what a server binds to is not always what others can reach, nor a folder what its node holds."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from urllib.parse import urlsplit

from miles_lite.errors import UserError, user_error

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


def actor_label(kind: str, *fixed: object) -> str:
    """What Ray's dashboard calls an actor: it reads the repr once, when the actor is made, so that only what never
    changes may stand in it: kind, role, index, and the node the actor is on."""
    return f"{kind}({', '.join(map(str, (*fixed, socket.gethostname())))})"


def loopback(host: str) -> bool:
    """Whether only this machine's own processes reach what is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local(host: str) -> str:
    """Where this machine's own processes reach what is bound to `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def http_url(url: str, *, given_as: str) -> str:
    """The same. Raises UserError for what is no address of a web server, naming its flag."""
    with user_error(f"{given_as} {url}: must be http://host:port", ValueError):
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0 and not set(url) & set(" \t\r\n")
    if not named or parts.scheme not in ("http", "https"):
        raise UserError(f"{given_as} {url}: must be http://host:port")
    return url


def bracketed(host: str) -> str:
    """`host` as it stands in a URL: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


_NETWORK = frozenset("nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph glusterfs afs 9p wekafs panfs pvfs2".split())


def network_file_system(folder: Path, *, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The type of the network file system that `folder` lies or would lie on; None for a local one."""
    if not mounts.is_file():
        return None
    where = folder.resolve()
    found = ("", "")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, kind, *_ = line.split(" ")
        if where.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    kind = found[1]
    return kind if kind in _NETWORK or kind.startswith("fuse.") else None
