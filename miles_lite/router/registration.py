"""What control requests say: registrations in every form in use, and weight versions, checked.

Invariant: a `Worker` that comes out of here has a usable URL, a known role, and a bootstrap port where it needs one.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import orjson
from aiohttp import web

from miles_lite.config.choices import WorkerType
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import Json, JsonObject
from miles_lite.router.backend import Worker


async def fields_of(request: web.Request) -> JsonObject:
    """A control request's fields, the query's before the JSON body's. Raises UserError for a body that is no object."""
    with user_error("the body is not JSON", ValueError):
        fields = orjson.loads(await request.read() or b"{}")
    if not isinstance(fields, dict):
        raise UserError("the body must be a JSON object")
    return fields | dict(request.query)


def parse_worker(fields: JsonObject) -> Worker:
    """A worker from a registration's fields: url or worker_url, worker_type, bootstrap_port. Raises UserError."""
    role = fields.get("worker_type") or "regular"
    if role not in list(WorkerType):
        raise UserError(f"worker_type {role!r}: must be one of {', '.join(WorkerType)}")
    bootstrap = fields.get("bootstrap_port")
    if bootstrap in (None, "", "none"):
        bootstrap = None
    elif not str(bootstrap).isdecimal() or not 0 < int(bootstrap) < 65536:
        raise UserError(f"bootstrap_port {bootstrap!r}: must be a port number")
    if role == WorkerType.PREFILL and bootstrap is None:
        raise UserError("worker_type prefill needs bootstrap_port: where decode workers fetch the cache")
    return Worker(
        url=parse_url(fields.get("url") or fields.get("worker_url")),
        worker_type=WorkerType(role),
        bootstrap_port=None if bootstrap is None else int(bootstrap),
    )


def parse_versions(fields: JsonObject) -> tuple[str, str | None]:
    """The weight version that workers must report, and the one that will also do meanwhile. Raises UserError."""
    version, before = fields.get("version"), fields.get("previous")
    if version in (None, "") or not isinstance(version, int | str):
        raise UserError("version is required: the weight version that workers must report, a number or a word")
    if not isinstance(before, int | str | None):
        raise UserError(f"previous {before!r}: must be a weight version, a number or a word")
    return str(version), None if before is None else str(before)


def parse_url(value: Json) -> str:
    """`http(s)://host[:port]` without a trailing slash. Raises UserError, which shows no password."""
    if not value:
        raise UserError("url (or worker_url) is required, in the query or in a JSON body")
    url, mend = str(value), "must be http://host:port"
    front, at, rest = url.rpartition("@")
    scheme, slashes, _ = front.rpartition("://")
    shown = f"{scheme}{slashes}{rest}"
    if at:
        raise UserError(f"url {shown!r} came with a user name or password: {mend}; what lists workers would show them")
    try:
        parts = urlsplit(url)
        named = parts.port != 0 and (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise UserError(f"url {url!r}: {mend} ({error})") from error
    plain = url.isprintable() and not set(url) & set(" ?#")
    if not (named and plain and parts.scheme in ("http", "https")):
        raise UserError(f"url {url!r}: {mend}")
    return url.rstrip("/")
