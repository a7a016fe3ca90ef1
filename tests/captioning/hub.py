"""A hub in this process: the two routes that a download asks, from a folder of models, with the faults of a bad network."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `root/<organisation>/<name>/<file>`.

    Attributes:
        url: for HF_ENDPOINT.
        requests: path and Range header of each request, in order.
        break_after: bytes of the next answers after which the connection is closed, one for each answer that has so many.
        answer: another status for every request; None for none.
        has_ranges: whether it goes on where a file broke off.
        damage: a name of a file that comes with a wrong byte.
        files_url: of the server that files are loaded from; "" for this one.
        tokens: the Authorization header of each request, in order.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        self.break_after: list[int] = []
        self.answer: int | None = None
        self.has_ranges, self.damage, self.files_url = True, "", ""
        self.tokens: list[str | None] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def describe(self, model: str) -> dict[str, Any]:
        siblings = []
        for path in sorted((self.root / model).iterdir()):
            data = path.read_bytes()
            entry: dict[str, Any] = {"rfilename": path.name, "size": len(data)}
            if path.suffix in (".safetensors", ".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(entry)
        return {"sha": COMMIT, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.requests.append((self.path, self.headers.get("Range", "")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        path = self.path.partition("?")[0].strip("/")
        if self.hub.answer is not None:
            self._send(self.hub.answer, b"")
        elif path.startswith("api/models/"):
            model = path.removeprefix("api/models/").removesuffix("/revision/main")
            if (self.hub.root / model).is_dir():
                self._send(200, json.dumps(self.hub.describe(model)).encode())
            else:
                self._send(401, b"{}")
        elif path.startswith("moved/"):
            self._send_file(self.hub.root / path.removeprefix("moved/"))
        else:  # as the hub does, to the server that has the files
            self.send_response(302)
            self.send_header("Location", self.hub.files_url + "/moved/" + path.replace(f"/resolve/{COMMIT}", ""))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        if path.name == self.hub.damage:
            data = bytes([data[0] ^ 1]) + data[1:]
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.hub.has_ranges else 0
        self._send(206 if start else 200, data[start:])

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.hub.break_after and len(data) > self.hub.break_after[0]:
            self.wfile.write(data[: self.hub.break_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass
