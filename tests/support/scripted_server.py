"""A small OpenAI-compatible server on loopback that answers as its script says: words, errors, garbage, silence."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Headers = Mapping[str, str]


@dataclass
class Scripted:
    """What was asked, and how to answer: `answer(body, number)` returns (status, body or text, headers)."""

    answer: Callable[[dict[str, Any], int], tuple[int, Any, Headers]]
    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(content: str, **choice: Any) -> dict[str, Any]:
    """A chat completion with one choice, as OpenAI-compatible servers send it."""
    return {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | choice
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 10},
    }


def words(**answers: str) -> tuple[int, Any, Headers]:
    return 200, completion(json.dumps(answers)), {}


def text_of(body: Mapping[str, Any]) -> str:
    """The text of the first user message."""
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return str(next(part["text"] for part in content if part["type"] == "text"))


def pictures_of(body: Mapping[str, Any]) -> list[str]:
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], tuple[int, Any, Headers]]) -> Iterator[Scripted]:
    """Serve until the block ends. An answer of status 0 closes the connection without a word."""
    script = Scripted(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with script.lock:
                script.asked.append(body)
                script.headers.append({key.lower(): value for key, value in self.headers.items()})
                number = len(script.asked)
                script.now += 1
                script.most_at_once = max(script.most_at_once, script.now)
            try:
                status, reply, headers = script.answer(body, number)
            finally:
                with script.lock:
                    script.now -= 1
            if status == 0:
                self.close_connection = True
                return
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def slowly(seconds: float, answer: tuple[int, Any, Headers]) -> tuple[int, Any, Headers]:
    time.sleep(seconds)
    return answer
