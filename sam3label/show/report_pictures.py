"""The pictures of a report: what is worth a look, a gallery spread over the run, and mistakes where truth is known."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from sam3label.core.records import Label, LabeledImage, MediaItem, Source
from sam3label.errors import UndecodableError
from sam3label.media import video
from sam3label.media.image import decode_image, megapixels
from sam3label.review.reasons import Case, Kind, Reason, sentence
from sam3label.run.reader import Run
from sam3label.show.draw import Pixels, draw_labels, outline
from sam3label.show.lettering import Fonts

if TYPE_CHECKING:
    from sam3label.quality.mistakes import Mistake, Mistakes

GALLERY = 48
GALLERY_FRAMES = 12  # of the gallery at most, where there are photos enough: frames of a video are near-copies
PICTURE_PX = 512
JPEG_QUALITY = 72
MISTAKES = 12  # of each kind


@dataclass(frozen=True, slots=True)
class WantedPicture:
    """A picture to be: the image, what is drawn on it, and what the page says of it."""

    image: LabeledImage
    labels: Sequence[Label]
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        item = self.image.item
        return item.id if item.kind == "image" else f"{item.id}, frame {self.image.frame}"


def of_cases(run: Run, worst: Mapping[Kind, Sequence[Case]]) -> Iterator[WantedPicture]:
    """Yield one picture a case, of the labels that its reasons name: kind by kind, in the queue's order."""
    for kind, cases in worst.items():
        for case in cases:
            found = case.of(kind)
            frame = max(found, key=lambda reason: reason.gain).frame
            image, labels = _named(run, case.item, frame, found)
            yield WantedPicture(image, labels, {"kind": kind, "reason": sentence(found)})


def _named(run: Run, item: MediaItem, frame: int, found: Sequence[Reason]) -> tuple[LabeledImage, list[Label]]:
    """Return the frame with the labels and candidates that the reasons name; all labels where they name none."""
    unit = run.unit(item.id, frame)
    assert unit is not None  # it was judged a moment ago
    seen = next(one for one in run.frames(unit) if one.image.frame == frame)
    ids = {label_id for reason in found for label_id in reason.label_ids}
    return seen.image, [d.label for d in seen.decisions if d.label.id in ids] or list(seen.image.labels)


def gallery(run: Run, photos: int, frames: int) -> Iterator[WantedPicture]:
    """Yield photos, then frames, each spread evenly over those of the run, whose numbers are given."""
    shown_frames = min(frames, max(GALLERY_FRAMES, GALLERY - photos))
    spread = {
        "image": _spread(photos, min(photos, GALLERY - shown_frames)), "video": _spread(frames, shown_frames)
    }  # fmt: skip
    chosen: dict[str, list[LabeledImage]] = {"image": [], "video": []}
    passed = {"image": 0, "video": 0}
    for unit in run.done_units():
        kind = unit.item.kind
        numbers = range(passed[kind], passed[kind] + unit.frame_stop - unit.frame_start)
        passed[kind] = numbers.stop
        if not spread[kind].isdisjoint(numbers):
            images = zip(numbers, run.unit_images(unit), strict=True)
            chosen[kind] += [image for number, image in images if number in spread[kind]]
    for image in (*chosen["image"], *chosen["video"]):
        classes = sorted({label.class_id for label in image.labels})
        yield WantedPicture(image, image.labels, {"classes": classes, "objects": len(image.labels)})


def of_mistakes(run: Run, mistakes: Mistakes) -> Iterator[WantedPicture]:
    """Yield the first `MISTAKES` pictures of each kind: largest misses, surest false alarms and confusions."""
    kinds = {"missed": mistakes.missed, "false alarm": mistakes.false_alarms, "confused": mistakes.confused}
    for kind, found in kinds.items():
        for one in found[:MISTAKES]:
            image = run.image(one.item_id, one.frame or 0)
            if image is not None:
                yield WantedPicture(
                    image, _objects(one, image, run.concepts.names), {"kind": kind, "reason": _said(one)}
                )


def _said(one: Mistake) -> str:
    if one.answer is None:
        return f"{one.truth_class} was missed"
    if one.truth is None:
        return f"{one.answer_class} {one.answer.score:.2f} is not in the truth"
    return f"{one.truth_class} was taken for {one.answer_class} ({one.answer.score:.2f})"


def _objects(one: Mistake, image: LabeledImage, names: Sequence[str]) -> list[Label]:
    """Return the truth without a score, and the answer with its own; what is only a box as an outline."""
    labels = []
    for name, instance, source in ((one.truth_class, one.truth, "human"), (one.answer_class, one.answer, "phrase")):
        if instance is not None:
            number = names.index(name) if name in names else len(names)
            rle = instance.rle or outline(instance.box_xywh, image.size_hw)
            box, area = instance.box_xywh, int(instance.area)
            labels.append(Label("", number, instance.score, 1.0, box, area, rle, "", cast("Source", source)))
    return labels


def _spread(total: int, n: int) -> set[int]:
    return set(np.linspace(0, max(total - 1, 0), n).round().astype(int).tolist())


# ---- drawing


def draw_all(
    wanted: Sequence[WantedPicture], names: Sequence[str], on_picture: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Return what the page needs of each: a small JPEG as a data URI (None where the photo is not what it was), its
    size, and what is said of it. All are drawn in one go, so a video is read once."""
    fonts = Fonts()
    drawn: dict[int, str | None] = {}
    of_item: dict[MediaItem, list[int]] = defaultdict(list)
    for number, one in enumerate(wanted):
        of_item[one.image.item].append(number)
    for item, numbers in of_item.items():
        size_hw, frames = wanted[numbers[0]].image.size_hw, {wanted[number].image.frame for number in numbers}
        for index, pixels in _read(item, size_hw, frames):
            for number in (n for n in numbers if wanted[n].image.frame == index):
                drawn[number] = _jpeg(pixels, wanted[number].labels, names, fonts)
                on_picture()
    return [
        {"item": one.name, "picture": drawn.get(number), "size": _shown_size(one.image.size_hw), **one.about}
        for number, one in enumerate(wanted)
    ]


def _shown_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) as drawn: the page keeps the room free before a picture is there."""
    scale = PICTURE_PX / max(size_hw)
    return max(1, round(size_hw[1] * scale)), max(1, round(size_hw[0] * scale))


def _read(item: MediaItem, size_hw: tuple[int, int], frames: set[int]) -> Iterator[tuple[int, Pixels]]:
    """Yield (number, pixels) of the wanted frames of a video, or the one of a photo; fewer where the file has gone."""
    try:
        if item.kind == "image":
            yield 0, decode_image(item.path, megapixels(size_hw))
            return
        for picture in video.pictures(item):
            if picture.index in frames:
                yield picture.index, picture.pixels()
            if picture.index >= max(frames):
                return
    except (UndecodableError, OSError):
        return


def _jpeg(pixels: Pixels, labels: Sequence[Label], names: Sequence[str], fonts: Fonts) -> str | None:
    if any(label.rle.size_hw != pixels.shape[:2] for label in labels):
        return None  # the file is another picture now
    jpeg = io.BytesIO()
    picture = Image.fromarray(draw_labels(pixels, labels, names, PICTURE_PX, fonts=fonts))
    picture.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
