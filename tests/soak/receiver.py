"""Owns Receiver: the target of a webhook, an HTTP server that fails now and then.

Its rule: a body counts as arrived only if it was answered with success.
"""

from __future__ import annotations

import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAILURES = {7: 500, 13: 408, 29: 400}
"""Every so many requests, that status: twice a retry, once a dead letter."""


class Receiver:
    """Listens from the start; `close` ends it."""

    def __init__(self) -> None:
        self.bodies: deque[bytes] = deque()
        self.requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests += 1
                status = next((code for every, code in FAILURES.items() if receiver.requests % every == 0), 204)
                if status == 204:
                    receiver.bodies.append(body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the daemon's log is the one to read."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A daemon that was killed in the middle of a request."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
