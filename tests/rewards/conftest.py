"""A scripted judge on a real loopback server, for what a real model would not do on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

# What the script says to a request's body: JSON for the judge to say, an HTTP status with its body, or None: hang up.
Script = Callable[[dict[str, Any]], dict[str, Any] | tuple[int, bytes] | None]


@dataclass
class ScriptedServer:
    """An OpenAI-compatible server with the model "scripted"; `requests` has the bytes of every completion request."""

    script: Script
    address: str = ""
    requests: list[bytes] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    busy: int = 0
    most_busy: int = 0
    delay: float = 0.0
    retry_after: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one packet: a body of its own waits 40 ms for the headers' receipt

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            if server.retry_after and status == 429:
                self.send_header("Retry-After", server.retry_after)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            server.keys.add(self.headers["Authorization"])
            self.answer(200, b'{"object": "list", "data": [{"id": "scripted", "object": "model"}]}')

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            with server.lock:
                server.requests.append(raw)
                server.busy += 1
                server.most_busy = max(server.busy, server.most_busy)
            time.sleep(server.delay)
            said = server.script(json.loads(raw))
            with server.lock:
                server.busy -= 1
            if said is None:
                self.answer(200, b'{"id": "1", "choices": [', length=10_000)
                self.close_connection = True
            elif isinstance(said, tuple):
                self.answer(*said)
            else:
                message = {"role": "assistant", "content": json.dumps(said)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
                reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "scripted"}
                self.answer(200, json.dumps({**reply, "choices": [choice], "usage": usage}).encode())

    return Handler


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], ScriptedServer]]:
    """`scripted(script) -> ScriptedServer`, which serves until the test ends."""
    running = []

    def start(script: Script) -> ScriptedServer:
        server = ScriptedServer(script)
        http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        running.append(http)
        server.address = f"http://127.0.0.1:{http.server_port}"
        return server

    yield start
    for http in running:
        http.shutdown()
        http.server_close()
