"""A local HTTP server with scripted answers, which records its requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(text: str) -> Act:
    document = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return lambda handler, _: send(handler, 200, json.dumps(document).encode())


class Served:
    def __init__(self, acts: list[Act]) -> None:
        """One act per request; the last one is repeated."""
        self.acts, self.asked, self.headers, self.paths = acts, [], [], []  # type: ignore[var-annotated]
        self.url, self.released = "", threading.Event()

    def act(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or b"{}")
        self.asked.append(body)
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        self.acts[min(len(self.asked), len(self.acts)) - 1](handler, body)


@contextmanager
def serving(*acts: Act) -> Iterator[Served]:
    served = Served(list(acts))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            served.act(self)

        def do_GET(self) -> None:
            served.act(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        served.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
