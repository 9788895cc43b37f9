"""Sandboxes of another machine, by HTTP (`sandbox_server.py` has the other side).

Invariant: a request whose answer is lost is asked again under the same name or number, and done once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

import httpx

from miles_lite.errors import SetupError, UserError, user_error
from miles_lite.process.admin_key import bearer, known_key
from miles_lite.sandboxes.files import called
from miles_lite.sandboxes.sandbox import ARCHIVE_BYTES, Sandbox, broken
from miles_lite.sandboxes.shell import Outcome

START_SECONDS, FILE_SECONDS, ANSWER_SECONDS = 1800.0, 300.0, 60.0
FLAWS = (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError)
"""Of an address, or of what answers there."""
REFUSALS: Mapping[int, Callable[[str], Exception]] = {
    httpx.codes.UNAUTHORIZED: SetupError,
    httpx.codes.FAILED_DEPENDENCY: SetupError,
    httpx.codes.UNPROCESSABLE_ENTITY: UserError,
}
"""What becomes of a request that is never granted: its machine is not as it must be, or it makes no sense."""
ATTEMPTS = 5
BACKOFF = 0.2
"""Seconds before a request's second attempt; twice that before the next."""


class RemoteSandbox:
    """See `sandbox.Sandbox`."""

    def __init__(self, ask: Callable[..., httpx.Response], name: str) -> None:
        self._ask, self._at = ask, f"/sandboxes/{name}"

    def run(self, command: str, *, seconds: float) -> Outcome:
        said = command.encode(errors="replace").decode()
        asked = {"number": secrets.token_hex(8), "command": said, "seconds": seconds}
        answer = self._ask("POST", f"{self._at}/commands", json=asked, timeout=seconds + ANSWER_SECONDS)
        try:
            return Outcome(**answer.json())
        except (ValueError, TypeError) as error:
            raise broken(f"{answer.url} answered with no outcome: {answer.text[:300]}") from error

    def unpack(self, archive: bytes) -> None:
        if len(archive) > ARCHIVE_BYTES:
            raise broken(f"{self._at}: the files take more than {ARCHIVE_BYTES >> 20} MB")
        self._ask("PUT", f"{self._at}/files", content=archive, timeout=FILE_SECONDS)

    def pack(self, path: str) -> bytes:
        answer = self._ask("GET", f"{self._at}/files?path={quote(called(path), safe='')}", timeout=FILE_SECONDS)
        if answer.status_code == httpx.codes.NO_CONTENT:
            raise FileNotFoundError(f"{path} is not in the sandbox")
        return answer.content

    def close(self) -> None:
        self._ask("DELETE", self._at, timeout=ANSWER_SECONDS)


class Remote:
    """See `sandbox.Provider`."""

    def __init__(self, url: str) -> None:
        """Raises SetupError when no server of sandboxes answers there."""
        self._url = url.rstrip("/")
        with user_error(f"no server of sandboxes answers at {url}", *FLAWS, kind=SetupError):
            self._client = httpx.Client(base_url=self._url, headers=bearer(known_key()), limits=httpx.Limits())
            if "sandboxes" not in self._client.get("/health", timeout=ANSWER_SECONDS).raise_for_status().json():
                raise ValueError("what does is another")

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        self._ask("PUT", f"/sandboxes/{name}", json={"image": image, "workdir": workdir}, timeout=START_SECONDS)
        return RemoteSandbox(self._ask, name)

    def reap(self) -> int:
        return 0  # the server's own

    def _ask(self, method: str, path: str, **given: object) -> httpx.Response:
        """The answer to a request, at the latest to its last attempt. Raises RolloutError, SetupError, UserError."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._client.request(method, path, **given)  # type: ignore[arg-type]
            except httpx.TransportError as error:
                if attempt == ATTEMPTS:
                    raise broken(f"{self._url} does not answer: {type(error).__name__}: {error}") from error
                time.sleep(BACKOFF * 2 ** (attempt - 1))
                continue
            if answer.is_success:
                return answer
            said = f"{self._url} answered {method} {path} with {answer.status_code}: {answer.text[:300]}"
            raise REFUSALS.get(answer.status_code, broken)(said)
        raise AssertionError
