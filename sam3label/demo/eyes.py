"""The demo's verifier: it finds the drawn shapes by their color, and a small network tells what each of them is.

A picture falls into areas of one color; the network sees the silhouette of an area and says which shape it is, also
where a part is hidden. All answers of `sam3label verify` follow: a label is right if the area under its mask is what
was asked for, its outline is good if mask and area are the same pixels, a class is complete if each area that is of it
lies under a mask. Behind the protocol of a real server.

Shape legend: N silhouettes of S x S pixels, K shapes, C colors.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sam3label.demo.shapes import COLORS, SHAPES, Thing, matches

WIDE_SIDE = 256  # pixels of a picture that is looked at
SIDE = 32  # of a silhouette
CHROMA = 55  # of 255, between the strongest and the weakest channel: the ground is grayer
HUE_SPREAD = 6.0  # degrees in which a color's hue strays
LEAST_AREA = 0.0012  # of a picture; less is an edge between two others
GOOD_IOU, OUTLINE_SLOPE = 0.6, 15.0  # the IoU from which an outline is good, and how sharply
NOISE = 14  # of 255: what JPEG changes where nothing was painted stays under it
WEIGHTS = Path(__file__).parent / "checkpoint" / "verifier.safetensors"

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Cover = npt.NDArray[np.bool_]  # [H, W], under a mask
Silhouette = npt.NDArray[np.float32]  # [S, S] in [0, 1]


class Shapes(nn.Module):
    """Silhouettes [N, 1, S, S] to logits of shapes [N, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(1, 16), _conv(16, 32), _conv(32, 64), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64 * 16, 32), nn.ReLU(), nn.Linear(32, len(SHAPES)))

    def forward(self, silhouettes: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(silhouettes - 0.5))
        return logits


def _conv(inside: int, outside: int) -> nn.Module:
    conv = nn.Conv2d(inside, outside, 3, 2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


# ---- areas of one color


@dataclass(frozen=True, slots=True)
class Area:
    """One connected area of a color in a picture: bool [h, w], and how likely each color is [C]."""

    pixels: Cover
    colors: npt.NDArray[np.float32]

    def silhouette(self) -> Silhouette:
        """Return its box with a margin, as a square of S x S pixels."""
        rows, columns = np.flatnonzero(self.pixels.any(1)), np.flatnonzero(self.pixels.any(0))
        part = self.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
        side = max(part.shape) + 2
        square = np.zeros((side, side), np.float32)
        top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
        square[top : top + part.shape[0], left : left + part.shape[1]] = part
        how = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=how), np.float32)


def fitted(picture: Pixels) -> Pixels:
    """Return the picture with its longer side at `WIDE_SIDE`."""
    height, width = picture.shape[:2]
    scale = WIDE_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def areas(small: Pixels) -> list[Area]:
    """Return the areas of one color in a fitted picture, each at least `LEAST_AREA` of it."""
    calm = cv2.medianBlur(small, 5).astype(np.float32)
    painted = calm.max(axis=2) - calm.min(axis=2) >= CHROMA
    away = np.abs(_hues(calm)[..., None] - _HUES)
    away = np.minimum(away, 360 - away)  # [h, w, C]
    nearest = np.where(painted, away.argmin(axis=2), -1)
    found = []
    for color in range(len(COLORS)):
        own = cv2.morphologyEx((nearest == color).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        count, numbered, stats, _ = cv2.connectedComponentsWithStats(own, connectivity=4)
        for k in range(1, count):
            if stats[k, cv2.CC_STAT_AREA] >= LEAST_AREA * own.size:
                pixels = numbered == k
                hue = np.median(away[pixels], axis=0)
                likely = np.exp(-0.5 * (hue / HUE_SPREAD) ** 2) + 1e-6
                found.append(Area(pixels, (likely / likely.sum()).astype(np.float32)))
    return found


def alone(area: Area, cover: Cover, small: Pixels) -> Area:
    """Return the object under a mask without others of its color that touch it: what is painted as the masked part is.

    An object's brightness changes evenly across it, so that a plane fits each of its channels.
    """
    rows, columns = np.nonzero(area.pixels)
    places = np.stack([np.ones(len(rows)), rows / small.shape[0], columns / small.shape[1]], axis=1)
    values, near = small[rows, columns].astype(np.float64), cover[rows, columns]
    for _ in range(3):
        if near.sum() < 40:
            return area
        plane, *_ = np.linalg.lstsq(places[near], values[near], rcond=None)
        off = np.abs(values - places @ plane).max(axis=1)
        like = off <= max(9.0, 3.0 * float(np.median(off[near])))
        near = cover[rows, columns] & like
    pixels = np.zeros_like(area.pixels)
    pixels[rows[like], columns[like]] = True
    calm = cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    calm = cv2.morphologyEx(calm, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    numbered = cv2.connectedComponents(calm)[1]
    sizes = np.bincount(numbered[cover & (numbered > 0)], minlength=1)
    if not sizes[1:].size or not sizes[1:].max():
        return area
    return Area(numbered == int(sizes[1:].argmax()) + 1, area.colors)


def parted(area: Area, cover: Cover) -> list[Area]:
    """Return an area whole, or where masks cover a part of it, that part and what is left: objects may touch."""
    share = float((area.pixels & cover).sum()) / float(area.pixels.sum())
    if not 0.1 < share < 0.9:
        return [area]
    wide = cv2.dilate(cover.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    parts = []
    for pixels in (area.pixels & cover, area.pixels & ~wide):
        calm = cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        count, numbered, stats, _ = cv2.connectedComponentsWithStats(calm)
        large = (k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] >= 3 * LEAST_AREA * calm.size)
        parts += [Area(numbered == k, area.colors) for k in large]
    return parts or [area]


def _hues(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return hues in degrees, [...], of RGB values [..., 3]."""
    return np.asarray(cv2.cvtColor(np.atleast_3d(pixels / 255).astype(np.float32), cv2.COLOR_RGB2HSV)[..., 0])


_HUES = _hues(np.array([list(COLORS.values())], np.float32))[0]


# ---- seeing


class Observer:
    """Look at pictures with the trained network. Thread-safe: one look at a time."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        from safetensors.torch import load_file

        self._shapes = Shapes()
        self._shapes.load_state_dict(load_file(weights))  # halves become floats
        self._shapes.eval()
        self._lock = threading.Lock()

    def _of_phrases(self, found: Sequence[Area], phrases: Sequence[str]) -> list[float]:
        """Return how likely each area is what one of the phrases names."""
        if not found:
            return []
        silhouettes = torch.from_numpy(np.stack([area.silhouette() for area in found]))[:, None]
        with self._lock, torch.inference_mode():
            shapes = self._shapes(silhouettes).softmax(1)
        colors = torch.from_numpy(np.stack([area.colors for area in found]))
        return [float(p) for p in torch.einsum("nk,nc,kc->n", shapes, colors, named(phrases))]

    def judge_label(self, phrases: Sequence[str], plain: Pixels, masked: Pixels) -> tuple[float, float]:
        """Return how sure it is that the masked object is what the phrases name, and that its outline is good."""
        cover, small = _small(covered(plain, masked)), fitted(plain)
        found = areas(small)
        shared = [int((area.pixels & cover).sum()) for area in found]
        if not found or max(shared) < 0.3 * cover.sum():
            return 0.0, 0.0
        under = alone(found[int(np.argmax(shared))], cover, small)
        iou = int((under.pixels & cover).sum()) / int((under.pixels | cover).sum())
        return self._of_phrases([under], phrases)[0], 1 / (1 + math.exp(-OUTLINE_SLOPE * (iou - GOOD_IOU)))

    def judge_class(self, phrases: Sequence[str], plain: Pixels, numbered: Pixels) -> tuple[float, float]:
        """Return how sure it is that there is any of what the phrases name, and that all of it is masked."""
        cover = _small(covered(plain, numbered))
        parts = [part for area in areas(fitted(plain)) for part in parted(area, cover)]
        there = self._of_phrases(parts, phrases)
        bare = [
            p for p, part in zip(there, parts, strict=True) if (part.pixels & cover).sum() < 0.5 * part.pixels.sum()
        ]
        return max(there, default=0.0), 1 - max(bare, default=0.0)


def named(phrases: Sequence[str]) -> Tensor:
    """Return which shapes and colors one of the phrases names, float32 [K, C] of 0 and 1."""
    table = [[any(matches(p, Thing(color, shape)) for p in phrases) for color in COLORS] for shape in SHAPES]
    return torch.tensor(table, dtype=torch.float32)


def covered(plain: Pixels, masked: Pixels) -> Cover:
    """Return where a mask was painted: where two pictures of one size differ by more than JPEG's noise."""
    differ = np.abs(plain.astype(np.int16) - masked).max(axis=2) > NOISE
    return np.asarray(cv2.morphologyEx(differ.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0)


def _small(cover: Cover) -> Cover:
    """Return a cover at the size of the fitted picture."""
    height, width = cover.shape
    scale = WIDE_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(cover.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5)


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
