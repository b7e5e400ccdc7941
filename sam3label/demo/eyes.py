"""The demo's verifier: two small networks that see the drawn shapes, behind the protocol of a real server.

`Closeup` looks at one object enlarged, with its mask: which shape and color is it, and how much of it does the mask
cover? `Overview` looks at a whole photo with the masks of a class: where are the middles of objects, what are they, and
is each of them under a mask? The four answers of `sam3label verify` follow from these.

Shape legend: N pictures, s x s pixels, K kinds (the shapes; `Closeup` knows "none of them" too), C colors.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sam3label.demo.shapes import COLORS, SHAPES, Thing, matches

CLOSE_SIDE = 64  # pixels of a picture of one object
WIDE_SIDE = 128  # of a whole photo
CELL = 4  # pixels of a photo that one answer of `Overview` is about
GOOD_IOU, OUTLINE_SLOPE = 0.6, 15.0  # the IoU with the object from which an outline is good, and how sharply
MIDDLE = 0.35  # the heat at which a middle is as likely an object's as not
NOISE = 14  # of 255: what JPEG changes where nothing was painted stays under it
WEIGHTS = Path(__file__).parent / "checkpoint" / "verifier.safetensors"

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Cover = npt.NDArray[np.uint8]  # [H, W], 255 under a mask


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class Closeup(nn.Module):
    """One object in its surroundings, with its mask [N, 4, s, s], to logits: kind [N, K + 1], color [N, C], IoU [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(4, 16, 2), _conv(16, 32, 2), _conv(32, 32), _conv(32, 56, 2), _conv(56, 56), nn.Dropout2d(0.1)
        )
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(56 * 16, 56), nn.ReLU())
        self.head = nn.Linear(56, len(SHAPES) + 1 + len(COLORS) + 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = nn.functional.avg_pool2d(self.body(pictures), 2)
        kinds, colors, iou = self.head(self.neck(seen)).split((len(SHAPES) + 1, len(COLORS), 1), 1)
        return kinds, colors, iou[:, 0]


class Overview(nn.Module):
    """Photos with masks [N, 4, h, w] to logits of each cell, [N, K, h / 4, w / 4] and so on.

    An object of this kind has its middle here; its color; it is under a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(4, 16, 2), _conv(16, 32, 2), _conv(32, 32))
        self.middle = nn.Sequential(_conv(32, 48, 2), _conv(48, 48))
        self.coarse = nn.Sequential(_conv(48, 48, 2), _conv(48, 48))
        self.up = nn.ModuleList((nn.Conv2d(48, 48, 1), nn.Conv2d(48, 32, 1)))
        self.joined = nn.ModuleList((_conv(48, 48), _conv(32, 32)))
        self.head = nn.Conv2d(32, len(SHAPES) + len(COLORS) + 1, 1)
        nn.init.constant_(self.head.bias[: len(SHAPES)], -2.2)  # type: ignore[index]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(pictures)
        middle = self.middle(fine)
        middle = self.joined[0](middle + _twice(self.up[0](self.coarse(middle))))
        fine = self.joined[1](fine + _twice(self.up[1](middle)))
        kinds, colors, covered = self.head(fine).split((len(SHAPES), len(COLORS), 1), 1)
        return kinds, colors, covered[:, 0]


def _twice(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def as_input(picture: Pixels, cover: Cover, side: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [side, side, 4]: the picture and its masks, the longer side at `side`, grey below or beside it."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.full((side, side, 4), (128, 128, 128, 0), np.uint8)
    canvas[: size[1], : size[0], :3] = cv2.resize(picture, size, interpolation=how)
    canvas[: size[1], : size[0], 3] = cv2.resize(cover, size, interpolation=how)
    return canvas


def as_tensor(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """Return uint8 [N, s, s, 4] as float32 [N, 4, s, s] around 0."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().sub_(128).div_(64).contiguous()


# ---- seeing


class Observer:
    """Look at pictures with trained networks. Thread-safe: one look at a time."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        from safetensors.torch import load_file

        self._near, self._wide = Closeup(), Overview()
        known = load_file(weights)
        for name, net in (("near.", self._near), ("wide.", self._wide)):
            net.load_state_dict({k.removeprefix(name): v for k, v in known.items() if k.startswith(name)})
            net.eval()
        self._lock = threading.Lock()

    def judge_label(self, phrases: Sequence[str], plain: Pixels, masked: Pixels) -> tuple[float, float]:
        """Return how sure it is that the masked object is what the phrases name, and that its outline is good."""
        shown = as_tensor(as_input(plain, covered(plain, masked), CLOSE_SIDE)[None])
        with self._lock, torch.inference_mode():
            kinds, colors, iou = self._near(shown)
        right = float(kinds[0].softmax(0)[1:] @ named(phrases) @ colors[0].softmax(0))
        return right, float((OUTLINE_SLOPE * (iou[0].sigmoid() - GOOD_IOU)).sigmoid())

    def judge_class(self, phrases: Sequence[str], plain: Pixels, numbered: Pixels) -> tuple[float, float]:
        """Return how sure it is that there is any of what the phrases name, and that all of it is masked."""
        cover = covered(plain, numbered)
        shown = as_tensor(as_input(plain, cover, WIDE_SIDE)[None])
        with self._lock, torch.inference_mode():
            kinds, colors, masked = (part[0] for part in self._wide(shown))
        there = torch.einsum("khw,chw,kc->hw", kinds.sigmoid(), colors.softmax(0), named(phrases))
        scale = WIDE_SIDE / max(plain.shape[:2]) / CELL
        height, width = (max(1, math.ceil(side * scale)) for side in plain.shape[:2])
        there, masked = there[:height, :width], masked.sigmoid()[:height, :width]
        return _sure(float(there.max())), 1 - _sure(float((there * (1 - masked)).max()))


def _sure(heat: float) -> float:
    """Return a chance of what the highest middle says: one at `MIDDLE` is as likely there as not."""
    heat = min(max(heat, 1e-4), 1 - 1e-4)
    logit = math.log(heat / (1 - heat)) - math.log(MIDDLE / (1 - MIDDLE))
    return 1 / (1 + math.exp(-2 * logit))


def named(phrases: Sequence[str]) -> Tensor:
    """Return which shapes and colors one of the phrases names, float32 [K, C] of 0 and 1."""
    table = [[any(matches(p, Thing(color, shape)) for p in phrases) for color in COLORS] for shape in SHAPES]
    return torch.tensor(table, dtype=torch.float32)


def covered(plain: Pixels, masked: Pixels) -> Cover:
    """Return where a mask was painted: where two pictures of one size differ by more than JPEG's noise."""
    differ = np.abs(plain.astype(np.int16) - masked).max(axis=2) > NOISE
    whole = cv2.morphologyEx(differ.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(whole * 255, np.uint8)


# ---- the protocol of a real server

_NAMED = re.compile(r'The class is "(.+?)"(?: \(also called (.+?)\))?\.')


def answer(observer: Observer, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a chat completion request of `verify.judge`. Raises ValueError for one that asks something else."""
    content = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    text = next((part["text"] for part in content if part["type"] == "text"), "")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    found = _NAMED.search(text)
    if found is None or len(urls) not in (2, 3):
        raise ValueError("this server answers the questions of `sam3label verify` about drawn shapes, and no others")
    phrases = [found[1], *(found[2] or "").split(", ")]
    pictures = [_picture(url) for url in urls[-2:]]
    if pictures[0].shape != pictures[1].shape:
        raise ValueError("two pictures of one thing, of different sizes")
    parts = ("right", "outline") if len(urls) == 3 else ("any", "all")
    judge = observer.judge_label if len(urls) == 3 else observer.judge_class
    return completion(dict(zip(parts, judge(phrases, *pictures), strict=True)))


def _picture(url: str) -> Pixels:
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("a picture that cannot be decoded")
    return np.ascontiguousarray(pixels[..., ::-1], np.uint8)


def completion(scores: Mapping[str, float]) -> dict[str, Any]:
    """Return a chat completion that says yes or no of each part, with the probabilities of both."""
    tokens: list[dict[str, Any]] = []
    for part, score in scores.items():
        sure = min(max(score, 1e-4), 1 - 1e-4)
        top = [{"token": "yes", "logprob": math.log(sure)}, {"token": "no", "logprob": math.log(1 - sure)}]
        tokens.append({"token": f'{"," if tokens else "{"}"{part}":"', "logprob": 0.0, "top_logprobs": []})
        tokens.append({"token": "yes" if score >= 0.5 else "no", "logprob": 0.0, "top_logprobs": top})
        tokens.append({"token": '"', "logprob": 0.0, "top_logprobs": []})
    tokens.append({"token": "}", "logprob": 0.0, "top_logprobs": []})
    message = {"role": "assistant", "content": "".join(token["token"] for token in tokens)}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}],
        "usage": {"prompt_tokens": 0, "completion_tokens": len(tokens)},
    }


@contextmanager
def serving(observer: Observer | None = None) -> Iterator[str]:
    """Serve on a free port of this machine until the block ends; gives the address for `--server`."""
    looking = observer or Observer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                status, reply = 200, answer(looking, json.loads(data))
            except (ValueError, KeyError, TypeError) as error:
                status, reply = 422, {"error": {"message": str(error)}}
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
