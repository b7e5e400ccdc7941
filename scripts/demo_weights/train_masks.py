"""Give the demo checkpoint a head that answers boxes and points.

    python scripts/demo_weights/train_masks.py --minutes 15      # into the demo checkpoint; goes on from what is there
    python scripts/demo_weights/train_masks.py --examine --card

SAM 3's tracker does both with one decoder. The demo's is too small: taught boxes, it forgets how to track. So what is
trained is a copy of the tracker's point embeddings, its "no memory" embedding, its mask decoder and its neck, which
lies beside the other weights (`interactive.safetensors`), and tracking stays as it was to the last bit. The image
encoder is shared. Two heads that are thrown away afterwards ask the image's cells, after each layer of the decoder,
whether the object covers them: without these a small decoder learns nothing at all for a long time. What lies on other
objects counts for more: two thirds of what such a head paints too much does.

Shape legend: B photos, N objects, R objects of an update, X = 128 the side of the truth's masks, g x g cells, V
channels of the image encoder, h x w mask logits.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import lessons
import train_tracker

from sam3label.core import masks
from sam3label.core.records import Frame, Hint, MediaItem
from sam3label.demo.shapes import make_scene
from sam3label.model.checkpoint import OWN_HEAD, resolve
from sam3label.model.detector import Detector
from sam3label.model.interactive import Clicked, Clicker
from sam3label.model.weights import load_own_head

X = 128
SCENES = 40_000_000  # seeds of what is trained on
HELD_OUT = 30_000_000  # seeds of what is not
KINDS = ("box", "loose", "point", "box", "both", "loose", "box", "loose")  # in turn
LOOSE = 0.12  # how far a side of a loose box may be off, in parts of the box
KEEP = 1  # minutes of training that a kill may lose
CROWDED = 3.0  # how much more often an object is shown whose box is full of others
OTHERS = 2.0  # how much more what lies on other objects counts
AVERAGED = 0.005  # share of an update in the weights that are written
PHOTOS = 8  # of an update, each with all its objects
TRAINED = (
    "tracker_model.prompt_encoder.point_embed.", "tracker_model.mask_decoder.", "tracker_model.no_memory_embedding",
    "tracker_neck.fpn_layers.0", "tracker_neck.fpn_layers.1", "tracker_neck.fpn_layers.2",
)  # fmt: skip
MOST = "the truth itself, as coarse as the decoder draws"
MARKS = "<!-- mask scores -->\n", "<!-- end of mask scores -->\n"


@dataclass(frozen=True, slots=True)
class Lessons:
    """Objects to be shown: what the encoder says of their photos, their masks, boxes and points in model pixels."""

    grid: Tensor  # [B, V, g, g] float16
    things: Tensor  # uint8 [B, X, X], 255 where any object is
    photo: Tensor  # [N], which of the B
    cover: Tensor  # uint8 [N, X, X], 255 where the object is
    box: Tensor  # [N, 4]
    points: Tensor  # [N, 9, 2], the first one deepest inside

    def others(self, rows: Tensor) -> Tensor:
        """How much of each pixel belongs to other objects: [R, X, X], in [0, 1]."""
        return (self.things[self.photo[rows]].float() - self.cover[rows].float()).clamp(min=0) / 255

    def odds(self) -> Tensor:
        """How often each object is shown, beside others: [N]."""
        places, odds = torch.arange(X) + 0.5, list[Tensor]()
        low, high = places >= self.box[:, :2, None], places <= self.box[:, 2:, None]  # [N, xy, X]
        for rows in torch.arange(len(self.photo)).split(256):
            inside = low[rows] & high[rows]  # [R, xy, X]
            others = (self.others(rows) * inside[:, 1, :, None] * inside[:, 0, None]).flatten(1).sum(1)
            odds.append(1 + CROWDED * (others / (self.cover[rows].float() / 255).flatten(1).sum(1)).clamp(max=1))
        return torch.cat(odds)


# ---- what is learnt from


@torch.inference_mode()
def draw_lessons(video: Any, count: int) -> Lessons:
    """Draw photos, and frames of films now and then, with all their objects of some size."""
    rng = np.random.default_rng(SCENES)
    grids: list[Tensor] = []
    things: list[Tensor] = []
    objects: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for seed in range(SCENES, SCENES + count):
        scene = lessons.video_frame(rng, seed) if seed % 5 == 4 else make_scene(seed, lessons.random_size(rng))
        own = [shown for k in range(1, len(scene.things) + 1) if (shown := _shown(scene.mask(k), rng)) is not None]
        if own:
            objects += ((len(grids), *one) for one in own)
            grids.append(_encoded(video, scene.image))
            things.append(_cover(scene.index > 0))
    photo, cover, box, points = zip(*objects, strict=True)
    own = (torch.stack(each) for each in (cover, box, points))
    return Lessons(torch.cat(grids), torch.stack(things), torch.tensor(photo), *own)


def _encoded(video: Any, image: np.ndarray[Any, Any]) -> Tensor:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (X, X), mode="bilinear", align_corners=False, antialias=True)
    backbone = video.detector_model.vision_encoder.backbone
    hidden = backbone(pixels.round().sub(127.5).mul(1 / 127.5)).last_hidden_state
    side = math.isqrt(hidden.shape[1])
    grid: Tensor = hidden.transpose(1, 2).unflatten(2, (side, side)).half()
    return grid


def _shown(mask: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor] | None:
    """(cover, box, points) of an object; None where too little of it shows."""
    scale = np.array((X / mask.shape[1], X / mask.shape[0]))
    if mask.mean() < 60 / 256**2:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) * np.tile(scale, 2)
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.nonzero(depth >= min(0.4 * depth.max(), 3))
    chosen = rng.integers(len(y), size=8)
    deepest = np.array(np.unravel_index(depth.argmax(), depth.shape))[None, ::-1]
    points = (np.concatenate((deepest, np.stack((x, y), 1)[chosen])) + 0.5) * scale
    return _cover(mask), torch.from_numpy(corners).float(), torch.from_numpy(points).float()


def _cover(mask: np.ndarray[Any, Any]) -> Tensor:
    cover = cv2.resize(mask.astype(np.float32), (X, X), interpolation=cv2.INTER_AREA) * 255
    return torch.from_numpy(cover.astype(np.uint8))


# ---- learning


@dataclass(frozen=True, slots=True)
class Answer:
    """All four masks [R, 4, h, w] (the single one first), their IoU [R, 4] as guessed, and what else is compared."""

    masks: Tensor
    ious: Tensor
    seen: Tensor
    token: Tensor
    cells: tuple[Tensor, ...]  # [R, S, D] after each layer


def decode(model: Any, image: Tensor, sparse: Tensor, fine: Tensor, middle: Tensor) -> Answer:
    """The mask decoder, all of whose answers are wanted."""
    decoder, n, grid = model.mask_decoder, len(image), image.shape[-1]
    weights = [one.weight for one in (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens)]
    tokens = torch.cat((torch.cat(weights).expand(n, 1, -1, -1), sparse), 2)
    places = model.get_image_wide_positional_embeddings().expand(n, -1, -1, -1)
    queries = tokens
    keys, places = (one.flatten(2).transpose(1, 2)[:, None] for one in (image, places))
    cells = []
    for layer in decoder.transformer.layers:
        queries, keys, _ = layer(queries, keys, tokens, places, None)
        cells.append(keys[:, 0])
    last = decoder.transformer
    seen, _ = last.final_attn_token_to_image(query=queries + tokens, key=keys + places, value=keys)
    queries = last.layer_norm_final_attn(queries + seen)
    pixels = keys[:, 0].transpose(1, 2).unflatten(2, (grid, grid))
    pixels = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(pixels) + middle))
    pixels = decoder.activation(decoder.upscale_conv2(pixels) + fine)
    drawn = [mlp(queries[:, 0, 2 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    masks = torch.einsum("rkd,rdhw->rkhw", torch.stack(drawn, 1), pixels)
    score = decoder.pred_obj_score_head(queries[:, 0, 0])[:, 0]
    return Answer(masks, decoder.iou_prediction_head(queries[:, 0, 1]), score, queries[:, 0, 2], tuple(cells))


def ask(video: Any, given: Lessons, rows: Tensor, kind: str, chance: torch.Generator) -> Answer:
    """Show objects by their boxes, loose boxes, a point inside, or both."""
    model = video.tracker_model
    boxes = points = labels = None
    if kind != "point":
        boxes = given.box[rows]
        if kind != "box":
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = boxes + (torch.rand(boxes.shape, generator=chance) * 2 - 1) * LOOSE * sides
        boxes = boxes[:, None]
    if kind in ("point", "both"):
        deepest = torch.rand(len(rows), generator=chance) < 0.5
        which = torch.where(deepest, 0, torch.randint(1, 9, (len(rows),), generator=chance))
        points = given.points[rows, which][:, None, None]
        labels = torch.ones((len(rows), 1, 1), dtype=torch.int)
    sparse, dense = model.prompt_encoder(input_points=points, input_labels=labels, input_boxes=boxes, input_masks=None)
    photos, photo = torch.unique(given.photo[rows], return_inverse=True)
    fine, middle, coarse = (layer(given.grid[photos].float()) for layer in video.tracker_neck.fpn_layers[:3])
    fine, middle = model.mask_decoder.conv_s0(fine), model.mask_decoder.conv_s1(middle)
    image = coarse[photo] + model.no_memory_embedding.reshape(1, -1, 1, 1) + dense
    return decode(model, image, sparse, fine[photo], middle[photo])


def near(boxes: Tensor, side: int) -> Tensor:
    """Where an edge may be: [R, side, side], 1 around the boxes [R, 4]."""
    places, margin = (torch.arange(side) + 0.5) * (X / side), 0.4 * (boxes[:, 2:] - boxes[:, :2]) + 2
    low, high = (boxes[:, :2] - margin)[..., None], (boxes[:, 2:] + margin)[..., None]
    inside = ((places >= low) & (places <= high)).float()  # [R, xy, side]
    return inside[:, 1, :, None] * inside[:, 0, None]


def mask_loss(logits: Tensor, truth: Tensor, around: Tensor) -> Tensor:
    """[R]: cross entropy around the object and, for less, elsewhere; and dice."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    close = (entropy * around).flatten(1).sum(1) / around.flatten(1).sum(1)
    share = logits.sigmoid()
    both = 2 * (share * truth).flatten(1).sum(1) + 1
    dice = 1 - both / (share.flatten(1).sum(1) + truth.flatten(1).sum(1) + 1)
    return 2 * close + 3 * dice + (entropy * (1 - around)).flatten(1).mean(1)


def loss_of(answer: Answer, truth: Tensor, others: Tensor, boxes: Tensor, heads: nn.ModuleList, eager: float) -> Tensor:
    """The loss of one update. `truth` and `others` [R, X, X] in shares; `eager` weighs what the cells are asked."""
    side = answer.masks.shape[-1]
    large = F.interpolate(answer.masks, (X, X), mode="bilinear", align_corners=False)
    with torch.no_grad():
        inside, there = large > 0, truth[:, None] >= 0.5
        reached = (inside & there).flatten(2).sum(2) / (inside | there).flatten(2).sum(2).clamp(min=1)
    weight = near(boxes, X) * (1 + OTHERS * others)
    small, around = (F.avg_pool2d(one[:, None], X // side)[:, 0] for one in (truth, weight))
    single = mask_loss(large[:, 0], truth, weight).mean()
    three = torch.stack([mask_loss(answer.masks[:, k], small, around) for k in (1, 2, 3)], 1)
    grid = math.isqrt(answer.cells[0].shape[1])
    cover, weight = (F.avg_pool2d(one[:, None], X // grid).flatten(1) for one in (truth, weight + 0.15))
    asked = torch.zeros(())
    for head, cells in zip(heads, answer.cells, strict=True):
        entropy = F.binary_cross_entropy_with_logits(head(cells)[..., 0], cover, reduction="none")
        asked = asked + ((entropy * weight).sum(1) / weight.sum(1)).mean()
    guess = F.mse_loss(answer.ious, reached)
    return single + 0.4 * three.amin(1).mean() + 0.05 * three.mean() + 0.5 * guess + eager * asked


def train(video: Any, given: Lessons, minutes: float, rate: float, out: Path) -> None:
    """Train for some minutes of a core; the weights are written every few of them and at the end."""
    model = video.tracker_model
    video.requires_grad_(False)
    names = [name for name, _ in video.named_parameters() if name.startswith(TRAINED)]
    weights = [video.get_parameter(name).requires_grad_() for name in names]
    width = model.no_memory_embedding.shape[-1]
    heads = nn.ModuleList([nn.Linear(width, 1) for _ in model.mask_decoder.transformer.layers])
    written = [weight.detach().clone() for weight in weights]
    trained = [*weights, *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.01)
    chance = torch.Generator().manual_seed(int(time.time()))
    began, step, kept, shown = time.process_time(), 0, 0, list[float]()
    odds = torch.zeros(len(given.grid)).index_add(0, given.photo, given.odds())
    while (done := (time.process_time() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        rows = torch.isin(given.photo, odds.multinomial(PHOTOS, generator=chance)).nonzero()[:, 0]
        answer = ask(video, given, rows, KINDS[step % len(KINDS)], chance)
        truth = given.cover[rows].float() / 255
        loss = loss_of(answer, truth, given.others(rows), given.box[rows], heads, 1 - done)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(written, weights, max(AVERAGED, 1 / (step + 10)))
        shown.append(float(loss.detach()))
        step += 1
        if step % 200 == 0:
            print(f"{step} updates, {done:.0%} of the time, loss {np.mean(shown[-200:]):.3f}", flush=True)
        if done * minutes > (kept + 1) * KEEP:
            kept += 1
            save(video, dict(zip(names, written, strict=True)), out)
    save(video, dict(zip(names, written, strict=True)), out)


def save(video: Any, written: dict[str, Tensor], out: Path) -> None:
    """Write the head beside the checkpoint's weights, in float16: a moving average of what was trained."""
    state = video.state_dict() | written
    weights = {name: value.half().contiguous() for name, value in state.items() if name.startswith(TRAINED)}
    beside = out / f"{OWN_HEAD}.tmp"
    save_file(weights, beside, metadata={"format": "pt"})
    beside.chmod(0o644)
    beside.replace(out / OWN_HEAD)


# ---- how well it does


def examine(model: str, count: int, size_hw: tuple[int, int] = (480, 640)) -> dict[str, float]:
    """Mean mask IoU, at the photo's size, of the objects of held-out photos by how they are shown; encodes a photo."""
    checkpoint = resolve(model)
    clicker = Clicker.load(checkpoint, Detector.load(checkpoint, device="cpu"))
    encodes: list[int] = []
    clicker.detector.model.vision_encoder.backbone.register_forward_hook(lambda _m, x, _y: encodes.append(len(x[0])))
    rng, found, photos, shares = np.random.default_rng(0), dict[str, list[float]](), 0, list[float]()
    for seed in range(HELD_OUT, HELD_OUT + count):
        scene = make_scene(seed, size_hw)
        truth = [scene.mask(k) for k in range(1, len(scene.things) + 1)]
        if not truth:
            continue
        photos += 1
        frame = Frame(MediaItem(str(seed), str(seed)), 0, scene.image)
        boxes = [_box(mask) for mask in truth]
        ways = {
            "box": [Hint(box) for box in boxes],
            "box, each side off by up to 10 %": [Hint(_loose(box, rng)) for box in boxes],
            "one point": [Hint(points=(_inside(mask),)) for mask in truth],
        }
        shares += [float(mask.mean()) for mask in truth]
        found.setdefault(MOST, []).extend(_as_coarse(mask, clicker.mask_side) for mask in truth)
        (answers,) = clicker.masks([frame], [[hint for own in ways.values() for hint in own]])
        for number, way in enumerate(ways):
            own = answers[number * len(truth) : (number + 1) * len(truth)]
            found.setdefault(way, []).extend(_iou(one, mask) for one, mask in zip(own, truth, strict=True))
    small = np.array(shares) < np.median(shares)
    boxes = np.array(found["box"])
    return (
        {way: float(np.mean(own)) for way, own in found.items() if way != MOST}
        | {"box, smaller half of the objects": float(boxes[small].mean())}
        | {"box, larger half": float(boxes[~small].mean()), MOST: float(np.mean(found[MOST]))}
        | {"encodes a photo": sum(encodes) / photos}
    )


def _as_coarse(mask: np.ndarray[Any, Any], side: int) -> float:
    """The IoU of a mask with itself, drawn as coarsely as the decoder draws."""
    coarse = torch.from_numpy(cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) - 0.5)
    again = F.interpolate(coarse[None, None], mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    return float((again & mask).sum() / (again | mask).sum())


def _box(mask: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _loose(box: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float, float]:
    sides = np.array((box[2] - box[0], box[3] - box[1]) * 2)
    x1, y1, x2, y2 = np.array(box) + rng.uniform(-0.1, 0.1, 4) * sides
    return float(x1), float(y1), float(x2), float(y2)


def _inside(mask: np.ndarray[Any, Any]) -> tuple[float, float, bool]:
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x) + 0.5, float(y) + 0.5, True


def _iou(found: Clicked, truth: np.ndarray[Any, Any]) -> float:
    if found.instance is None:
        return 0.0
    return float(masks.iou_matrix([found.instance.rle], [masks.encode(truth)])[0, 0])


def write_card(folder: Path, scores: dict[str, float], photos: int) -> None:
    """Put the figures between their marks in the checkpoint's README."""
    readme = folder / "README.md"
    head, _, rest = readme.read_text().partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    rows = "".join(f"| {way} | {value:.3f} |\n" for way, value in scores.items())
    table = f"| {photos} photos, every object | mean mask IoU |\n|---|---|\n{rows}"
    readme.write_text(head + MARKS[0] + table + MARKS[1] + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description="Give the demo checkpoint a head that answers boxes and points.")
    parser.add_argument("--checkpoint", type=Path, default=train_tracker.CHECKPOINT)
    parser.add_argument("--minutes", type=float, default=15.0, help="of a core, whatever else it does")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--photos", type=int, default=4000)
    parser.add_argument("--examine", action="store_true", help="only say how well it does")
    parser.add_argument("--card", action="store_true", help="write the figures into its README")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.checkpoint
    if not arguments.examine:
        video, _ = train_tracker.load(folder, folder, 0)
        load_own_head(resolve(str(folder)), video)
        train(video, draw_lessons(video, arguments.photos), arguments.minutes, arguments.rate, folder)
    scores = examine(str(folder), 200)
    print("\n".join(f"{way}: {value:.3f}" for way, value in scores.items()))
    if arguments.card:
        write_card(folder, scores, 200)


if __name__ == "__main__":
    main()
