"""Stands in for SGLang's server where only its life and death matter: every request is answered with {}.

With FAKE_SGLANG_BROKEN_NODE=N the server of node N does not come up.
"""

from __future__ import annotations

import http.server
import os
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = answer


if __name__ == "__main__":
    node = sys.argv[sys.argv.index("--node-rank") + 1] if "--node-rank" in sys.argv else "0"
    if node == os.environ.get("FAKE_SGLANG_BROKEN_NODE"):
        sys.exit(f"node {node} is out of memory")
    host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--host", "--port"))
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
