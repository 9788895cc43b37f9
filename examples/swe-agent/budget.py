"""What an episode costs in CPU time without the model: the agent, its commands, the hidden tests.

    python budget.py --episodes 64

Invariant: the agent is the real one; a canned server in another process answers it with transcripts. Under bubblewrap
the kernel does not tell what the sandboxed processes cost: measure without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

import agent
from make_tasks import make_tasks
from transcripts import transcript
from workspace import Workspace


def serve(rows: list[dict[str, Any]], pipe: Connection) -> None:
    """Answer `/<n>/v1/chat/completions` with the next message of task n's right transcript; sends its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            turn = len(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"])
            message = transcript(rows[int(self.path.split("/")[1])], fix=0)[turn]
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {"id": "0", "object": "chat.completion", "created": 0, "model": "policy", "usage": usage}
            data = json.dumps(answer | {"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


async def episodes(port: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    urls = [f"http://127.0.0.1:{port}/{index}/v1" for index in range(len(rows))]
    jobs = [agent.run(url, row["input"], {}, row["metadata"]) for url, row in zip(urls, rows, strict=True)]
    return await asyncio.gather(*jobs)


def cpu_milliseconds(who: int, action: Callable[[], object]) -> float:
    """CPU time that `action` costs this process (RUSAGE_SELF) or its ended children (RUSAGE_CHILDREN)."""
    before = resource.getrusage(who)
    action()
    after = resource.getrusage(who)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def act(rows: list[dict[str, Any]], *, tests: bool) -> None:
    """The commands of right episodes, or their hidden tests."""
    for row in rows:
        with Workspace(row["metadata"]["files"]) as workspace:
            if tests:
                workspace.passes(row["metadata"]["hidden_tests"], timeout=agent.TEST_SECONDS)
                continue
            for message in transcript(row, fix=0):
                if message["role"] == "assistant":
                    workspace.bash(message["content"].split("\n")[2], timeout=agent.COMMAND_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=64)
    count = parser.parse_args().episodes
    rows = make_tasks("train", count=count, seed=0)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(rows, theirs), daemon=True)
    server.start()
    port = ours.recv()
    warm = asyncio.run(episodes(port, rows))  # imports, connections, repositories
    assert all(result["reward"] == 1.0 for result in warm)
    self, children = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    costs = {
        "agent": cpu_milliseconds(self, lambda: asyncio.run(episodes(port, rows))),
        "commands": cpu_milliseconds(children, lambda: act(rows, tests=False)),
        "hidden tests": cpu_milliseconds(children, lambda: act(rows, tests=True)),
    }
    server.terminate()
    server.join()
    for name, cost in costs.items():
        print(f"{name:<14} {cost / count:6.1f} ms")
    print(f"{'episode':<14} {sum(costs.values()) / count:6.1f} ms of CPU, {warm[0]['turns']} turns, model not included")


if __name__ == "__main__":
    main()
