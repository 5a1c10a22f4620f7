"""Ears for alarms: a real HTTP server and a real mail server on this machine that keep what they are sent."""

from __future__ import annotations

import contextlib
import email
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any


class Sink:
    """What was received, and where."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.port = 0
        #: HTTP status to answer with.
        self.status = 200
        self._lock = threading.Lock()

    def add(self, one: dict[str, Any]) -> None:
        """Keep one message."""
        with self._lock:
            self.received.append(one)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        with self._lock:
            taken, self.received = self.received, []
        return taken


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def webhook() -> Iterator[Sink]:
    """A server that takes JSON posts; each message as the sender wrote it, with ``path`` added."""
    sink = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if sink.status == 200:
                sink.add({**json.loads(body), "path": self.path})
            self.send_response(sink.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test says what it needs."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sink.port = server.server_address[1]
        with _serving(server):
            yield sink


class _Mail(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self._say("220 sink")
        message: dict[str, Any] = {"to": []}
        while line := self.rfile.readline().decode().rstrip("\r\n"):
            word = line.split(" ")[0].split(":")[0].upper()
            if word in ("EHLO", "HELO"):
                self._say("250 sink")
            elif word == "RCPT":
                message["to"].append(line)
                self._say("250 ok")
            elif word == "DATA":
                self._say("354 go on")
                lines = []
                while (one := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                    lines.append(one)
                parsed = email.message_from_string("\n".join(lines))
                text = parsed.get_payload(decode=True)
                message |= {"title": parsed["Subject"], "text": text.decode() if isinstance(text, bytes) else ""}
                self.server.sink.add(message)  # type: ignore[attr-defined]
                self._say("250 taken")
            elif word == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 ok")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextlib.contextmanager
def mailbox() -> Iterator[Sink]:
    """A mail server that speaks enough SMTP to be handed a message."""
    sink = Sink()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mail) as server:
        server.daemon_threads = True
        server.sink = sink  # type: ignore[attr-defined]
        sink.port = server.server_address[1]
        with _serving(server):
            yield sink


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
