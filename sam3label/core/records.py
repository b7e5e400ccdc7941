"""The frozen values that flow between the rooms. numpy only; no sibling but `errors` is imported.

Shape legend: P prompts, F frames, H x W pixels of the image as a person sees it (EXIF orientation applied).
Boxes are `xywh` in pixels of that image, edges not centres: a one-pixel mask at the origin has box (0, 0, 1, 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from sam3label.core.text import count

Box = tuple[float, float, float, float]
Source = Literal["phrase", "exemplar", "both", "human", "given", "agent"]


@dataclass(frozen=True, slots=True)
class Rle:
    """A binary mask as COCO run-length code: column-major runs, compressed `counts` as pycocotools writes them."""

    size_hw: tuple[int, int]
    counts: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.counts, bytes):
            raise ValueError(f"counts must be bytes, got {type(self.counts).__name__}")
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise ValueError(f"size_hw must be two positive integers, got {self.size_hw}")

    def __repr__(self) -> str:
        return f"Rle({self.size_hw[0]}x{self.size_hw[1]}, {len(self.counts)} bytes)"


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One file to label. `id` is its POSIX path relative to the source root: stable, unique in a run.

    `path` is on a disk, or an address in storage (s3://...), of which `version` tells what it held when it was listed.
    """

    id: str
    path: str
    kind: Literal["image", "video"] = "image"
    root: str = field(default="", compare=False)  # the source it was found under
    version: int = field(default=0, compare=False)  # made of an object's size and etag; 0: not known, or on a disk


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a file's content from another's: its size in bytes, its version, a hash of its bytes.

    The version is a file's time of change, in nanoseconds; of an object in storage `MediaItem.version`.
    """

    size: int
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Decoded pixels, RGB, orientation applied, with the stamp of the photo they were read from."""

    item: MediaItem
    index: int
    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    stamp: Stamp | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8 (H, W, 3), got {self.pixels.dtype} {self.pixels.shape}")

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A file that cannot be decoded, with the reason in words.

    It is `lasting` where the reason is what is in the file: then there is no use in trying it again as it is.
    """

    item: MediaItem
    reason: str
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: a phrase, exemplars of a class, or both. `key` is unique and stable within a run."""

    key: str
    text: str | None
    source: Source = "phrase"
    class_name: str | None = None  # set for exemplar prompts, which are of one class whatever phrase they carry
    digest: str = ""  # of its exemplars, or of its tiles: tells the same prompt with others apart

    @property
    def identity(self) -> str:
        """The key, and with exemplars which these were: what candidates are named after."""
        return f"{self.key}\0{self.digest}" if self.digest else self.key


@dataclass(frozen=True, slots=True)
class BoxPrompt:
    """Exemplars for one prompt on one image: boxes [N, 4] as (x1, y1, x2, y2) in [0, 1]; positive or negative."""

    boxes_xyxy: npt.NDArray[np.float32]
    positive: tuple[bool, ...]

    def __post_init__(self) -> None:
        if self.boxes_xyxy.shape != (len(self.positive), 4) or not self.positive:
            raise ValueError(f"boxes_xyxy must be ({len(self.positive)}, 4), N > 0, got {self.boxes_xyxy.shape}")


@dataclass(frozen=True, slots=True)
class Hint:
    """Where one object is, as a person showed it: a box (x1, y1, x2, y2), points (x, y, on it or not), or both.

    In pixels of the image. Raises ValueError for a hint that says nothing, and for a box without an area.
    """

    box_xyxy: Box | None = None
    points: tuple[tuple[float, float, bool], ...] = ()

    def __post_init__(self) -> None:
        if self.box_xyxy is None and not any(inside for _, _, inside in self.points):
            raise ValueError("a hint has a box or a point on the object, got neither")
        if self.box_xyxy is not None:
            x1, y1, x2, y2 = self.box_xyxy
            if not (x2 > x1 and y2 > y1):
                raise ValueError(f"box_xyxy must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {self.box_xyxy}")

    @property
    def is_single_point(self) -> bool:
        """Whether a part or the whole may be meant."""
        return self.box_xyxy is None and len(self.points) == 1


@dataclass(frozen=True, slots=True)
class Given:
    """What a dataset says of an object whose mask was asked: its box or points, its id and its attributes there.

    There is no `hint` where it gives the mask itself, and in frames of a video to which the object was followed.
    `stability` in [0, 1] says how little the mask depends on where it is cut.
    """

    hint: Hint | None
    id: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    stability: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One instance over the floor, as the model saw it. `score` is query x presence, both in [0, 1].

    Of an object that was `given` there is always one, whatever came of it: `score` is the IoU that the model expects
    of its mask, which may be empty.
    """

    id: str
    item_id: str
    frame: int
    prompt: str  # Prompt.key
    score: float
    presence: float
    box_xywh: Box
    area: int
    rle: Rle
    track_id: int | None = None
    track_score: float | None = None
    source: Source = "phrase"
    given: Given | None = None


def candidate_id(item_id: str, frame: int, prompt: str, query: int) -> str:
    """Return 16 hexadecimal digits that name a candidate: the same run on the same inputs gives the same ones."""
    text = "\0".join((item_id, str(frame), prompt, str(query)))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Processor:
    """What computed a unit: a machine by its name, a device as torch names it, and what model of device that is."""

    host: str
    device: str
    kind: str


@dataclass(frozen=True, slots=True)
class Likeness:
    """The labelled image, or frame of a video, that another one is a near-copy of, and how far their features are."""

    item_id: str
    frame: int
    distance: float


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What one unit of work (an image, or a clip of a video) came to. Written to the store in one transaction.

    `presence` is float32 [F, P] in the order of the run's prompts, NaN where a prompt was not asked. `last` is False
    for units of a video after which more is to come. `like` is set for an image that was left out as a near-copy of
    another, `look` has the features that later ones are compared with, and `full` the keys of prompts whose answers ran
    out of room in the closest views of it.
    """

    item: MediaItem
    frame_start: int
    frame_stop: int
    size_hw: tuple[int, int] | None
    candidates: tuple[Candidate, ...] = ()
    presence: npt.NDArray[np.float32] | None = None
    error: str | None = None  # the reason, when the unit failed
    last: bool = True
    stamp: Stamp | None = None  # of the file; None where it is not known
    processor: Processor | None = None  # that computed it
    like: Likeness | None = None
    look: bytes = b""
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.error is None and self.like is None and (self.size_hw is None or self.presence is None):
            raise ValueError(f"{self.item.id} has no error and is like no other, so it needs a size and presences")

    @property
    def status(self) -> Literal["done", "failed"]:
        return "done" if self.error is None else "failed"


@dataclass(frozen=True, slots=True)
class Exemplars:
    """Labelled examples of a class: partial labels of the target images, or a folder of reference images.

    Or `objects`: a dataset each of whose boxes is an object of the class, and gets a mask, or in a video a track.

    In a canvas the target takes `share` of the width, and is shown whole and in `tiles` x `tiles` parts.
    """

    path: str
    kind: Literal["labels", "references", "objects"]
    mode: Literal["canvas", "tokens"] = "canvas"
    share: float = 0.7
    tiles: int = 1


@dataclass(frozen=True, slots=True)
class Tiles:
    """How large photos are shown in parts beside the whole: `size` pixels a side, None for the model's input side.

    With `auto` only photos much larger than the model's input get tiles, and phrases whose answers ran out of room.
    """

    size: int | None = None
    overlap: float = 0.2  # of a tile with the next, at least
    auto: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, got {self.size}")
        if not 0 <= self.overlap <= 0.5:
            raise ValueError(f"overlap must be between 0 and 0.5, got {self.overlap}")


@dataclass(frozen=True, slots=True)
class Verify:
    """What a verifier's verdicts may change in one class; by default they are shown and nothing else.

    `presence`: `veto` drops the class where the verifier says there is none, `replace` puts its score in the place of
    the model's presence. `missing_conf`: where it says that not all are masked, candidates from this score on become
    labels. `reject_below`: labels whose mask it scores lower are dropped.
    """

    presence: Literal["off", "veto", "replace"] = "off"
    reject_below: float | None = None
    missing_conf: float | None = None

    def __post_init__(self) -> None:
        if self.reject_below is not None and not 0 < self.reject_below <= 1:
            raise ValueError(f"reject_below must be over 0 and at most 1, got {self.reject_below}")
        if self.missing_conf is not None and not 0 <= self.missing_conf <= 1:
            raise ValueError(f"missing_conf must be between 0 and 1, got {self.missing_conf}")


Relation = Literal["overlaps", "inside", "with", "left_of", "right_of", "above", "below", "beside", "nearest"]
Part = Literal["whole", "top", "bottom", "left", "right"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Where a label must be to stay, said of the labels of another class: one line of `where:`.

    `part` is the other label's for `overlaps` and `inside`, the label's own for `with`.
    """

    relation: Relation
    class_name: str
    part: Part = "whole"
    negated: bool = False

    def __post_init__(self) -> None:
        if self.part != "whole" and self.relation not in ("overlaps", "inside", "with"):
            raise ValueError(f"a part goes with overlaps, inside and with, got {self.relation!r} and {self.part!r}")

    def __str__(self) -> str:
        """The condition as the concept list has it.

        >>> str(Condition("with", "helmet", "top", negated=True)), str(Condition("overlaps", "person", "top"))
        ('without helmet at top', 'overlaps person.top')
        """
        if self.relation == "with":
            word = "without" if self.negated else "with"
            return f"{word} {self.class_name}{'' if self.part == 'whole' else f' at {self.part}'}"
        word = f"not {self.relation}" if self.negated else self.relation
        return f"{word} {self.class_name}{'' if self.part == 'whole' else f'.{self.part}'}"


USUAL_CONF = 0.5  # of a class that names none: SAM 3's own detection threshold


@dataclass(frozen=True, slots=True)
class Concept:
    """One class and the rules that turn candidates into its labels. Thresholds are in [0, 1], areas in pixels."""

    id: int
    name: str
    prompts: tuple[str, ...]
    negatives: tuple[str, ...] = ()  # `not:` phrases: suppress, never exported
    conf: float = USUAL_CONF
    iou: float = 0.7  # masks of one class overlapping more than this are one object
    presence: float = 0.0
    min_area: float = 0.0
    max_instances: int | None = None
    inside: Literal["keep", "drop"] = "drop"  # of two masks of which one lies in the other: both, or the better
    exemplars: Exemplars | None = None
    tile: Tiles | None = None
    where: tuple[Condition, ...] = ()  # all of them must hold
    verify: Verify = Verify()
    refine: bool = False  # masks are asked for again, from the boxes around them
    snap: bool = False  # objects that were given have their mask's box, not the one that was given
    ask: str | None = None  # what an agent is asked to find, where no phrase says it; then there are no prompts


@dataclass(frozen=True, slots=True)
class ConceptList:
    """The classes in id order (ids are 0..N-1), and the groups in which one object gets one class."""

    concepts: tuple[Concept, ...]
    exclusive: tuple[tuple[str, ...], ...] = ()
    path: str | None = field(default=None, compare=False)  # the file it was read from

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.concepts)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase once, in order of first use, hard negatives included: what the model is asked."""
        return tuple(dict.fromkeys(p for c in self.concepts for p in (*c.prompts, *c.negatives)))


Doubt = Literal["no mask", "outside its box", "unsure mask"]


@dataclass(frozen=True, slots=True)
class Label:
    """One instance of the training set: a candidate that was selected, or a human's.

    Of an object that was `given`, `doubt` says why its mask was not believed: the label is then its box.

    `class_name` is what the class of `class_id` is called in the concept list that the label was decided by.
    """

    id: str
    class_id: int
    score: float
    presence: float
    box_xywh: Box
    area: int
    rle: Rle
    prompt: str
    source: Source = "phrase"
    frame: int = 0
    track_id: int | None = None
    class_name: str = field(default="", compare=False)
    given: Given | None = None
    doubt: Doubt | None = None

    @property
    def box_xyxy(self) -> Box:
        """(left, top, right, bottom) in pixels, edges not centres."""
        x, y, width, height = self.box_xywh
        return x, y, x + width, y + height

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the mask in the image's pixels, bool [H, W]."""
        from sam3label.core import masks  # which needs these records

        return masks.decode(self.rle)


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """One labelled image as exporters see it. `labels` may be empty: that is background, not failure."""

    item: MediaItem
    size_hw: tuple[int, int]
    labels: tuple[Label, ...] = field(default=())
    reviewed: bool = False
    frame: int = 0

    def __repr__(self) -> str:
        at = f", frame {self.frame}" if self.item.kind == "video" else ""
        labels = count(len(self.labels), "label")
        return f"LabeledImage({self.item.id!r}{at}, {labels}{', reviewed' if self.reviewed else ''})"

    @property
    def path(self) -> str:
        """Where the photo or video was when it was labelled."""
        return self.item.path

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as Pillow has it."""
        return self.size_hw[1], self.size_hw[0]


VerdictPart = Literal["any", "all", "right", "outline"]
VerdictUse = Literal["presence", "missing", "masks"]  # what a verifier is trusted with, each by itself
USES: dict[VerdictUse, tuple[VerdictPart, ...]] = {
    "presence": ("any",),
    "missing": ("all",),
    "masks": ("right", "outline"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier said of one class in one image (`label_id` is None), or of one label. `score` in [0, 1].

    `any`: is there any? `all`: is every one of them masked? `right`: is the label of its class? `outline`: is its mask
    good? A score of None means that the verifier was not sure. `verifier` names the model and the digest of how it
    was asked: verdicts of two ways of asking are never mixed.
    """

    item_id: str
    frame: int
    class_name: str
    label_id: str | None
    part: VerdictPart
    score: float | None
    verifier: str
    at: str = ""  # ISO 8601, UTC
    seconds: float = 0.0
    shown: str = ""  # stands for the masks that a question about a class showed

    def __post_init__(self) -> None:
        if (self.label_id is None) != (self.part in ("any", "all")):
            raise ValueError(f"a label_id goes with 'right' and 'outline', got {self.part!r} and {self.label_id!r}")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score must be between 0 and 1, got {self.score}")


def prompts_of(concepts: ConceptList) -> Sequence[Prompt]:
    """Return the prompts of a concept list in the order in which presences are stored: its phrases, then its exemplars.

    A class with exemplars and phrases has an exemplar prompt for each of its phrases.
    """
    phrases = (Prompt(key=p, text=p) for p in concepts.phrases)
    exemplars = (prompt for concept in concepts.concepts for prompt in _exemplar_prompts(concept))
    return (*phrases, *exemplars)


def _exemplar_prompts(concept: Concept) -> Iterator[Prompt]:
    if concept.ask is not None:
        yield Prompt(exemplar_key(concept.name), concept.ask, "agent", concept.name)
    if concept.exemplars is None:
        return
    if concept.exemplars.kind == "objects":
        yield Prompt(exemplar_key(concept.name), None, "given", concept.name)
        return
    for text in concept.prompts or (None,):
        yield Prompt(exemplar_key(concept.name, text), text, "exemplar" if text is None else "both", concept.name)


EXEMPLAR_KEY = "exemplar:"
_KEY_PARTS = "\t"  # in no class name and no phrase


def exemplar_key(class_name: str, phrase: str | None = None) -> str:
    """Return the key of a class's exemplar prompt, alone or with one of its phrases."""
    return _KEY_PARTS.join((EXEMPLAR_KEY + class_name, *(() if phrase is None else (phrase,))))


def exemplar_class(key: str) -> str | None:
    """Return the class an exemplar prompt's key names; None for a phrase."""
    return key.removeprefix(EXEMPLAR_KEY).split(_KEY_PARTS)[0] if key.startswith(EXEMPLAR_KEY) else None


@dataclass(frozen=True, slots=True)
class Transcript:
    """What an agent and its tools said to each other about one photo and one class, and what came of it, in words.

    `turns` are pairs: a reply of the model, and what it was told then. `model` names it and the digest of how it is
    asked.
    """

    item_id: str
    class_name: str
    model: str
    turns: tuple[tuple[str, str], ...]
    outcome: str
    at: str = ""  # ISO 8601, UTC


CorrectionAction = Literal["added", "deleted", "relabelled", "reshaped", "approved", "reviewed"]


@dataclass(frozen=True, slots=True)
class Correction:
    """One human decision, kept beside the model's candidates and never over them.

    `label_id` names a label (`None` for `reviewed`, which says that a person has seen the whole image: its labels are
    then exactly those a person touched or approved). `class_name` goes with added and relabelled, `rle` with added
    and reshaped. `pull` names the batch of corrections the row came in with.
    """

    item_id: str
    frame: int
    action: CorrectionAction
    label_id: str | None = None
    class_name: str | None = None
    rle: Rle | None = None
    track_id: int | None = None
    who: str = ""
    at: str = ""  # ISO 8601, UTC
    pull: str = ""

    def __post_init__(self) -> None:
        if (self.label_id is None) != (self.action == "reviewed"):
            raise ValueError(f"a label_id goes with every action but 'reviewed', got {self.action!r} {self.label_id!r}")
        if self.action in ("added", "relabelled") and not self.class_name:
            raise ValueError(f"{self.action!r} needs a class_name")
        if self.action in ("added", "reshaped") and self.rle is None:
            raise ValueError(f"{self.action!r} needs a mask")
