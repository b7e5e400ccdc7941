"""Object storage for tests: moto's S3 server in a process of its own, and a proxy before it that misbehaves."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUCKET = "site"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Store:
    """An S3 endpoint with one bucket."""

    url: str
    client: Any

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def upload(self, folder: Path, prefix: str) -> str:
        """Put every file of a folder under a prefix; return its address."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def s3_server(log: Path) -> Iterator[Store]:
    """Start moto's server on loopback, with an empty bucket."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=_plain_environment()) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(port, process)
            client = boto3.client(
                "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="tester",
                aws_secret_access_key="not-a-secret",
            )  # fmt: skip
            client.create_bucket(Bucket=BUCKET)
            yield Store(url, client)
        finally:
            process.terminate()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_ENDPOINT")}


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("moto's server did not start")


def forget_connections() -> None:
    """Make the next access to storage look at the environment anew."""
    from s3fs import S3FileSystem

    from sam3label.media import storage

    storage.file_system.cache_clear()
    storage.silent.clear()
    S3FileSystem.clear_instance_cache()


# ---- an endpoint that misbehaves


@dataclass
class Weather:
    """What the proxy does: the part `busy` of the requests is answered 503; after `until` of them it answers nobody.

    `page` is how many objects a listing has at once, where that is not S3's thousand.
    """

    busy: float = 0.0
    until: int | None = None
    page: int | None = None
    seen: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def next(self) -> str:
        """What becomes of one more request."""
        with self.lock:
            self.seen += 1
            if self.until is not None and self.seen > self.until:
                return "gone"
            if self.dice.random() < self.busy:
                self.refused += 1
                return "busy"
            return "fine"


@contextmanager
def proxy(upstream: str, weather: Weather) -> Iterator[str]:
    """Serve another endpoint's answers, as the weather lets it."""
    target = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            fate = weather.next()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fate == "gone":
                self.close_connection = True
                self.connection.close()
                return
            if fate == "busy":
                self._answer(503, [("Content-Type", "application/xml")], _BUSY)
                return
            there = http.client.HTTPConnection(target, timeout=30)
            short = f"&max-keys={weather.page}" if weather.page and "list-type=2" in self.path else ""
            there.request(self.command, self.path + short, body or None, dict(self.headers))
            answer = there.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
            there.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            kept = [(name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "connection")]
            if self.command != "HEAD":
                kept = [(n, v) for n, v in kept if n.lower() != "content-length"] + [("Content-Length", str(len(body)))]
            for name, value in kept:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
