"""What of Comet's server a run needs, on this machine's loopback: it remembers what it was sent."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ANSWERS = {
    "isAlive/ver": {"version": "5.0.0"},
    "add/run": {"runId": "run", "project_id": "project", "focusUrl": "http://comet.test/"},
    "status-report/update": {
        "is_alive_beat_duration_millis": 60_000,
        "gpu_monitor_interval_millis": 60_000,
    },
}
_REFUSED = {"msg": "no such key", "code": 400, "sdk_error_code": 90212}


class CometServer(ThreadingHTTPServer):
    """Attributes: refuses, whether keys are refused; requests, (path, body) of all that came."""

    daemon_threads = True

    def __init__(self, *, refuses=False):
        self.refuses = refuses
        self.requests = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/clientlib/"

    def sent(self, path):
        """Bodies of all requests to a path."""
        return [body for found, body in self.requests if path in found]

    def batch(self, path):
        """Items of batches of metrics or parameters."""
        return [one for body in self.sent(path) for one in json.loads(body)["values"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, body))
        code, answer = 200, {"msg": "ok", "code": 200}
        if "add/run" in self.path and self.server.refuses:
            code, answer = 400, _REFUSED
        else:
            answer |= next((found for end, found in _ANSWERS.items() if end in self.path), {})
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_):
        pass


@contextmanager
def comet_server(**options):
    """A server in a thread, for as long as the context lasts."""
    server = CometServer(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
