"""Stands in for SGLang's server where only its life, death and weight version matter.

With FAKE_SGLANG_BROKEN_NODE=N the server of node N does not come up.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
from typing import Any


def given(flag: str) -> str:
    """What a flag of the command line says, or 0."""
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else "0"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    version = given("--weight-version")

    def answer(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path == "/update_weights_from_disk":
            Handler.version = said["weight_version"]
        self.reply({"weight_version": self.version} if self.path == "/model_info" else {})

    def reply(self, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = answer


if __name__ == "__main__":
    node = given("--node-rank")
    if node == os.environ.get("FAKE_SGLANG_BROKEN_NODE"):
        sys.exit(f"node {node} is out of memory")
    http.server.ThreadingHTTPServer((given("--host"), int(given("--port"))), Handler).serve_forever()
