"""What the demo model is asked while it learns: prompts with known answers over synthetic scenes.

Shape legend: N objects of a sample, side x side model pixels, cells x cells mask cells, K exemplar boxes.
Boxes are cxcywh in [0, 1]. Object numbers here count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from sam3label.demo.shapes import (
    ANYTHING,
    COLORS,
    SHAPES,
    SYNONYMS,
    Scene,
    Thing,
    make_clip,
    make_scene,
    matches,
    without_slivers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sam3label.train.detector import Batch

VISUAL = "visual"  # the phrase that stands for "no words, look at the boxes"
NEVER_NAMED = (("purple", "star"), ("green", "ring"))  # objects appear, the pair of words does not
STRANGERS = (
    "person", "car", "truck", "bus", "bicycle", "bird", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "bottle", "cup", "fork", "knife", "spoon",
    "bowl", "banana", "apple", "sandwich", "carrot", "pizza", "cake", "chair", "couch", "plant", "bed", "table",
    "toilet", "tv", "laptop", "mouse", "keyboard", "phone", "oven", "sink", "book", "clock", "vase", "scissors",
    "tree", "house", "road", "cloud", "river", "wheel", "door", "window", "helmet", "glove", "shoe", "hat", "shirt",
    "screw", "bolt", "leaf", "flower", "grass", "rock", "stone", "cat", "fish", "line", "wall", "forklift",
    "pallet", "heart", "moon", "sun", "oval", "hexagon", "cross", "black", "white", "grey", "brown", "pink",
)  # fmt: skip
UNSEEN_STRANGERS = ("dog", "train", "boat", "lamp", "spider", "wheelbarrow", "guitar", "teddy bear", "traffic light")

VIDEO_FRAMES = 0.55  # of the pictures that are asked about
SLIVER = 0.0008  # of the picture

Tokenize = Callable[[Sequence[str]], "tuple[Tensor, Tensor]"]  # phrases -> ids [U, length], mask [U, length]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt for one sample and its answer."""

    phrase: str
    exemplars: tuple[tuple[int, int], ...] = ()  # (object, label): 1 like this, 0 not like this
    answer: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture as the model sees it. In a canvas the first `references` objects are the examples' side."""

    image: npt.NDArray[np.uint8]  # [side, side, 3]
    masks: npt.NDArray[np.uint8]  # [N, cells, cells], 255 where wholly covered
    boxes: npt.NDArray[np.float32]  # [N, 4]
    things: tuple[Thing, ...]
    references: tuple[int, ...] = ()  # the objects that were cropped on purpose, one per cell


def shrink(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Resize [H, W, 3] to [side, side, 3] as the model's preprocessing does: bilinear with antialiasing, rounded."""
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return small.round_()[0].permute(1, 2, 0).to(torch.uint8).numpy()


def to_sample(scene: Scene, side: int, cells: int, references: tuple[int, ...] = ()) -> Sample:
    """The scene at the model's size, every object's visible box and soft mask with it."""
    height, width = scene.size_hw
    masks = np.zeros((len(scene.things), cells, cells), np.uint8)
    boxes = np.zeros((len(scene.things), 4), np.float32)
    for i in range(len(scene.things)):
        mask = scene.mask(i + 1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, y0, x1, y1 = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
        boxes[i] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        masks[i] = cv2.resize(mask.astype(np.uint8) * 255, (cells, cells), interpolation=cv2.INTER_AREA)
    return Sample(shrink(scene.image, side), masks, boxes, scene.things, references)


def video_frame(rng: Rng, seed: int) -> Scene:
    """A frame of a clip: objects half in the picture and half hidden, as tracking meets them; slivers go unnamed.

    Mostly of its second tenth to its fourth, in which objects enter.
    """
    length = int(rng.integers(24, 64))
    frame = int(length * rng.beta(1.5, 3.5))
    (scene,) = make_clip(seed, length, random_size(rng), int(rng.integers(2, 8)), only=[frame])
    return without_slivers(scene, SLIVER)


def random_size(rng: Rng) -> tuple[int, int]:
    """A photo size (height, width) of a common aspect ratio, small enough to draw quickly."""
    aspect = float(rng.choice([4 / 3, 4 / 3, 1, 16 / 9, 3 / 4]))
    side = float(rng.uniform(150, 270))
    return round(side / aspect**0.5), round(side * aspect**0.5)


def compose_canvas(
    target: Scene, references: Sequence[tuple[Scene, int]], share: float, margin: float
) -> tuple[Scene, tuple[int, ...]]:
    """One picture: at the left a strip with crops around reference objects (scene, number from 1), then the target.

    `share` of the width goes to the strip; each crop is the object's box widened by `margin` of its longer side and
    scaled to fit its cell on mid-grey. Objects keep their truth; a neighbour less than half inside a crop has none.
    Returns the canvas and which of its `things` (from 0) are the references.
    """
    height, width = target.size_hw
    strip = round(share / (1 - share) * width)
    image = np.full((height, strip + width, 3), 128, np.uint8)
    index = np.zeros((height, strip + width), np.uint8)
    things: list[Thing] = []
    wanted: list[int] = []
    cell = height // len(references)
    for i, (scene, number) in enumerate(references):
        patch, numbers, kept = _crop(scene, number, margin, (cell - 4, strip - 4), len(things))
        top, left = i * cell + (cell - patch.shape[0]) // 2, (strip - patch.shape[1]) // 2
        place = np.s_[top : top + patch.shape[0], left : left + patch.shape[1]]
        image[place], index[place] = patch, numbers
        wanted.append(len(things))
        things += kept
    image[:, strip:] = target.image
    index[:, strip:] = np.where(target.index, target.index + len(things), 0)
    return Scene(image, index, (*things, *target.things)), tuple(wanted)


def _crop(
    scene: Scene, number: int, margin: float, room_hw: tuple[int, int], first: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[Thing]]:
    """A crop scaled to the room, its index map numbered from `first` + 1, the wanted object first, and its things."""
    mask = scene.mask(number)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pad = round(margin * max(rows[-1] - rows[0], columns[-1] - columns[0]))
    y0, y1 = max(rows[0] - pad, 0), min(rows[-1] + 1 + pad, mask.shape[0])
    x0, x1 = max(columns[0] - pad, 0), min(columns[-1] + 1 + pad, mask.shape[1])
    scale = min(room_hw[0] / (y1 - y0), room_hw[1] / (x1 - x0))
    size = (max(1, int((x1 - x0) * scale)), max(1, int((y1 - y0) * scale)))
    patch = cv2.resize(scene.image[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    numbers = cv2.resize(scene.index[y0:y1, x0:x1], size, interpolation=cv2.INTER_NEAREST)
    inside = np.bincount(scene.index[y0:y1, x0:x1].ravel(), minlength=256)
    whole = np.bincount(scene.index.ravel(), minlength=256)
    others = [k for k in range(1, len(scene.things) + 1) if k != number and 2 * inside[k] > whole[k]]
    kept = [k for k in (number, *others) if (numbers == k).any()]
    renumber = np.zeros(256, np.uint8)
    renumber[kept] = first + 1 + np.arange(len(kept))
    return patch.astype(np.uint8), renumber[numbers], [scene.things[k - 1] for k in kept]


def canvas_sample(rng: Rng, target: Scene, library: Sequence[Scene], side: int, cells: int) -> Sample:
    """A canvas with 1 to 4 references of a kind from the library, at times one more of another kind.

    A third of the kinds are drawn without looking at the target: most photos show nothing of a class that is sought.
    """
    kinds = sorted({thing.name for thing in target.things})
    anywhere = sorted({thing.name for scene in library for thing in scene.things})
    there = bool(kinds) and rng.random() < 0.65
    chosen = _instances(rng, library, str(rng.choice(kinds if there else anywhere)))[: int(rng.integers(1, 5))]
    if not chosen:  # a kind that only the target has
        chosen = _instances(rng, library, str(rng.choice(anywhere)))[:1]
    if len(chosen) < 4 and rng.random() < 0.4:
        chosen += _instances(rng, library, str(rng.choice(kinds if kinds and rng.random() < 0.5 else anywhere)))[:1]
    canvas, wanted = compose_canvas(target, chosen, float(rng.uniform(0.25, 0.4)), float(rng.uniform(0.08, 0.5)))
    return to_sample(canvas, side, cells, wanted)


def _instances(rng: Rng, library: Sequence[Scene], name: str) -> list[tuple[Scene, int]]:
    """Up to four objects of that name, each from another scene, in random order."""
    found: list[tuple[Scene, int]] = []
    for i in rng.permutation(len(library)):
        scene = library[int(i)]
        numbers = [k for k, thing in enumerate(scene.things, start=1) if thing.name == name]
        if numbers:
            found.append((scene, int(rng.choice(numbers))))
        if len(found) == 4:
            break
    return found


def ask_words(rng: Rng, things: Sequence[Thing], positive: bool, strangers: Sequence[str] = STRANGERS) -> Question:
    """A phrase that names something in the picture, or, close to it or far from it, nothing."""
    for _ in range(20):
        phrase = _phrase_for(rng, things, positive, strangers)
        answer = tuple(i for i, thing in enumerate(things) if matches(phrase, thing))
        if bool(answer) == positive and not _is_never_named(phrase):
            return Question(phrase, answer=answer)
    return Question(str(rng.choice(strangers)))


def _phrase_for(rng: Rng, things: Sequence[Thing], positive: bool, strangers: Sequence[str]) -> str:
    color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
    if things and (positive or rng.random() < 0.6):  # a negative that is half right is the one that teaches
        thing = things[int(rng.integers(len(things)))]
        half = rng.random() < 0.5
        color = thing.color if positive or half else color
        shape = thing.shape if positive or not half else shape
    elif not positive and rng.random() < 0.3:
        return stranger(rng, strangers)
    return _say(rng, color, shape)


def stranger(rng: Rng, strangers: Sequence[str]) -> str:
    """Words that name no object here: an unknown noun, an unknown noun with a known color, or letters at random."""
    word, form = str(rng.choice(strangers)), rng.random()
    if form < 0.15:
        return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 8))))
    return f"{rng.choice(list(COLORS))} {word}" if form < 0.4 else word


def _say(rng: Rng, color: str, shape: str) -> str:
    form = rng.random()
    if rng.random() < 0.2:
        shape = str(rng.choice([new for new, old in SYNONYMS.items() if old == shape] or [shape]))
        color = "violet" if color == "purple" else color
    if form < 0.55:
        return f"{color} {shape}"
    if form < 0.75:
        return shape
    if form < 0.96:
        return f"{color} {'object' if rng.random() < 0.25 else 'shape'}"
    return str(rng.choice(ANYTHING))


def _is_never_named(phrase: str) -> bool:
    words = {SYNONYMS.get(word, word) for word in phrase.split()}
    return any(words >= set(pair) for pair in NEVER_NAMED)


def ask_boxes(rng: Rng, things: Sequence[Thing], allowed: Sequence[int] | None = None) -> Question:
    """Boxes alone: one to three objects of a kind, at times with counter-examples; the answer is the whole kind.

    Of the references of a canvas (`allowed`) mostly all are shown, as when labelling: other kinds as counter-examples.
    """
    pool = list(allowed) if allowed is not None else list(range(len(things)))
    chosen = pool[int(rng.integers(len(pool)))]
    same = tuple(i for i, thing in enumerate(things) if thing.name == things[chosen].name)
    shown = [i for i in same if i in pool and i != chosen]
    rng.shuffle(shown)
    positive = [chosen, *shown[: int(rng.integers(3))]] if rng.random() < 0.5 else [chosen]
    others = [i for i in pool if i not in same]
    negative = [int(i) for i in rng.permutation(others)[: int(rng.integers(1, 3))]] if rng.random() < 0.3 else []
    if allowed is not None and rng.random() < 0.6:
        positive, negative = [i for i in pool if i in same], others
    return Question(VISUAL, (*((i, 1) for i in positive), *((i, 0) for i in negative)), same)


def ask_both(rng: Rng, things: Sequence[Thing], allowed: Sequence[int] | None = None) -> Question:
    """Words with a box: an example of what they name, or a counter-example that takes its kind out of the answer."""
    pool = list(allowed) if allowed is not None else list(range(len(things)))
    chosen = pool[int(rng.integers(len(pool)))]
    thing = things[chosen]
    named = ask_words(rng, [thing], positive=True)
    if not named.answer:
        return ask_boxes(rng, things, allowed)
    answer = tuple(i for i, other in enumerate(things) if matches(named.phrase, other))
    kinds = {things[i].name for i in answer}
    if len(kinds) > 1 and rng.random() < 0.5:
        return Question(named.phrase, ((chosen, 0),), tuple(i for i in answer if things[i].name != thing.name))
    if allowed is not None and rng.random() < 0.6:
        return Question(named.phrase, tuple((i, int(i in answer)) for i in pool), answer)
    return Question(named.phrase, ((chosen, 1),), answer)


def lesson(rng: Rng, sample: Sample, words: int, boxes: int) -> list[Question]:
    """The questions asked of one sample in one step; a picture without objects gets only words."""
    if not sample.things:
        return [ask_words(rng, (), positive=False) for _ in range(words + boxes)]
    allowed = sample.references or None
    questions = [ask_words(rng, sample.things, bool(rng.random() < 0.55)) for _ in range(words)]
    for i, question in enumerate(questions):  # many answers at once are the hardest
        if question.answer and rng.random() < 0.4:
            questions[i] = max(question, ask_words(rng, sample.things, True), key=lambda one: len(one.answer))
    for _ in range(boxes):
        questions.append((ask_boxes if rng.random() < 0.6 else ask_both)(rng, sample.things, allowed))
    return questions


def collate(lessons: Sequence[tuple[Sample, Sequence[Question]]], tokenize: Tokenize, rng: Rng | None = None) -> Batch:
    """Samples and their questions as one batch. With `rng`, pictures are flipped and turned and boxes drawn loosely."""
    import torch

    from sam3label.train.detector import PAD, Batch

    turned = [turn(sample, int(rng.integers(8)) if rng else 0) for sample, _ in lessons]
    asked = [(b, question) for b, (_, questions) in enumerate(lessons) for question in questions]
    phrases = list(dict.fromkeys(question.phrase for _, question in asked)) or [VISUAL]
    ids, mask = tokenize(phrases)
    most = max([1, *(len(question.exemplars) for _, question in asked)])
    boxes = np.zeros((len(asked), most, 4), np.float32)
    labels = np.full((len(asked), most), PAD)
    for p, (b, question) in enumerate(asked):
        for k, (number, label) in enumerate(question.exemplars):
            boxes[p, k] = turned[b].boxes[number]
            labels[p, k] = label
    if rng is not None:
        size = boxes[..., 2:]
        boxes = boxes + np.concatenate([size, size], -1) * rng.normal(0, 0.025, boxes.shape).astype(np.float32)
    images = torch.from_numpy(np.stack([sample.image for sample in turned]))
    return Batch(
        pixels=images.permute(0, 3, 1, 2).float().sub_(127.5).mul_(1 / 127.5),
        token_ids=ids,
        token_mask=mask,
        image_of=torch.tensor([b for b, _ in asked], dtype=torch.long),
        phrase_of=torch.tensor([phrases.index(question.phrase) for _, question in asked], dtype=torch.long),
        exemplars=torch.from_numpy(boxes),
        exemplar_labels=torch.from_numpy(labels),
        instance_boxes=tuple(torch.from_numpy(sample.boxes) for sample in turned),
        instance_masks=tuple(torch.from_numpy(sample.masks).float() / 255 for sample in turned),
        targets=tuple(torch.tensor(question.answer, dtype=torch.long) for _, question in asked),
        attributes=tuple(_attributes(sample.things) for sample in turned),
    )


def _attributes(things: Sequence[Thing]) -> Tensor:
    import torch

    colours = list(COLORS)
    rows = [[colours.index(thing.color), SHAPES.index(thing.shape)] for thing in things]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)


def turn(sample: Sample, way: int) -> Sample:
    """One of the eight flips and quarter turns of a picture; the arrays are made contiguous again."""
    if way == 0:
        return sample
    image, masks, boxes = sample.image, sample.masks, sample.boxes.copy()
    if way & 1:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
        boxes[:, 0] = 1 - boxes[:, 0]
    if way & 2:
        image, masks = image[::-1], masks[:, ::-1]
        boxes[:, 1] = 1 - boxes[:, 1]
    if way & 4:
        image, masks = image.transpose(1, 0, 2), masks.transpose(0, 2, 1)
        boxes = boxes[:, [1, 0, 3, 2]]
    return Sample(np.ascontiguousarray(image), np.ascontiguousarray(masks), boxes, sample.things, sample.references)


class Classroom:
    """Batches by number: number n always gives the same batch, so a resumed training sees what it would have seen.

    A window of scenes slides along as training goes, one new scene a step: none is worn out and drawing stays cheap.
    """

    def __init__(self, tokenize: Tokenize, side: int, cells: int, seed: int, window: int = 2400) -> None:
        self.tokenize, self.side, self.cells, self.seed, self.window = tokenize, side, cells, seed, window
        self.scenes: dict[int, Scene] = {}
        self.samples: dict[int, Sample] = {}

    def batch(self, number: int, plain: int = 5, canvases: int = 3) -> Batch:
        """Batch `number`: `plain` scenes with seven questions each and `canvases` with six."""
        rng = np.random.default_rng((self.seed, number))
        self._slide(number)
        picks = number + rng.integers(self.window, size=plain + canvases)
        samples = [self.samples[int(i)] for i in picks[:plain]]
        taught = [(sample, lesson(rng, sample, 4, 3)) for sample in samples]
        for i in picks[plain:]:
            library = [self.scenes[int(k)] for k in number + rng.integers(self.window, size=60)]
            library = [scene for scene in library if scene.things and not scene.things[0].track]  # whole objects
            sample = canvas_sample(rng, self.scenes[int(i)], library, self.side, self.cells)
            taught.append((sample, lesson(rng, sample, 1, 5)))
        return collate(taught, self.tokenize, rng)

    def pictures(self, number: int, count: int = 16) -> Batch:
        """Batch `number` of scenes without questions, for learning to see."""
        rng = np.random.default_rng((self.seed, number))
        self._slide(number)
        picks = number + rng.integers(self.window, size=count)
        return collate([(self.samples[int(i)], ()) for i in picks], self.tokenize, rng)

    def _slide(self, number: int) -> None:
        wanted = range(number, number + self.window)
        for i in [old for old in self.scenes if old not in wanted]:
            del self.scenes[i], self.samples[i]
        for i in [new for new in wanted if new not in self.scenes]:
            rng, seed = np.random.default_rng((self.seed, i, 1)), TRAINING_SEEDS + i
            moving = rng.random() < VIDEO_FRAMES
            self.scenes[i] = video_frame(rng, seed) if moving else make_scene(seed, random_size(rng))
            self.samples[i] = to_sample(self.scenes[i], self.side, self.cells)


TRAINING_SEEDS = 2**40  # scenes with lower seeds are never trained on: they are for users, tests and evaluation
