"""Stands in for SGLang's server where only its life and death matter: every request is answered with {}."""

from __future__ import annotations

import http.server
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
    host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--host", "--port"))
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
