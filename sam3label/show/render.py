"""A run's videos with their tracks drawn on them, as H.264: for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Label, LabeledImage
from sam3label.errors import InputError, OutputError, UndecodableError
from sam3label.media import video as media_video
from sam3label.show.contact_sheet import class_color, class_name

if TYPE_CHECKING:
    from sam3label.run.reader import Run

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]

FILL = 0.4  # how much of a mask's pixel is its track's colour
_CLOCK = Fraction(1, 90_000)  # of the times in the file


def render(
    run: Run, out: str | Path, video: str | None = None, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Draw the run's videos, or the one with id `video`, and return how many there were.

    `out` is the file of one video (.mp4 or .mov), or a folder that gets `ID.mp4` of each. `progress` is called with the
    number of frames so far. Raises InputError when the run has no such video, OutputError when `out` does not fit or
    cannot be written.
    """
    out, done, frames = Path(out), 0, 0
    wanted = _wanted(run, video)
    if single := out.suffix.lower() in (".mp4", ".mov"):
        _refuse_several(wanted, out)
    images = (image for image in run.images() if image.item.id in wanted)
    for _, group in groupby(images, key=lambda image: image.item.id):
        first = next(group)
        target = out if single else out / f"{first.item.id}.mp4"
        for _ in _write(target, first, group, run.concepts.names):
            frames += 1
            progress(frames)
        done += 1
    return done


def _wanted(run: Run, video: str | None) -> list[str]:
    found = [item.id for item in run.items("video")]
    if not found:
        raise InputError("the run has no labelled videos. Photos are shown by: sam3label preview, sam3label report")
    if video is None:
        return found
    if video not in found:
        raise InputError(f"the run has no video {video!r}. It has: {', '.join(found[:10])}")
    return [video]


def _refuse_several(wanted: Sequence[str], out: Path) -> None:
    if len(wanted) > 1:
        raise OutputError(
            f"the run has {len(wanted)} videos, and {out} is one file. Choose one with --video {wanted[0]}, or give a "
            "folder with -o."
        )


def _write(target: Path, first: LabeledImage, rest: Iterator[LabeledImage], names: Sequence[str]) -> Iterator[None]:
    """Write one video, with a pause after each frame. The file appears whole or not at all."""
    import av

    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_unwritable(target, error)) from error
    try:
        with av.open(str(partial), "w", format=target.suffix[1:].lower()) as container:
            stream = _stream(container, first)
            for seconds, picture in _drawn(first, rest, names):
                stream_frame = av.VideoFrame.from_ndarray(_even(picture), format="rgb24")
                stream_frame.pts, stream_frame.time_base = round(seconds / _CLOCK), _CLOCK
                container.mux(stream.encode(stream_frame))
                yield
            container.mux(stream.encode(None))
        partial.replace(target)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(_unwritable(target, error)) from error
    except UndecodableError as error:
        raise OutputError(f"{first.item.path} can no longer be decoded as it was labelled: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(target: Path, error: Exception) -> str:
    return f"{target} cannot be written ({getattr(error, 'strerror', None) or error}). Give another place with -o."


def _stream(container: Any, first: LabeledImage) -> Any:
    height, width = first.size_hw
    stream = container.add_stream("libx264", rate=round(media_video.frame_rate(first.item)), options={"crf": "20"})
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    stream.codec_context.time_base = _CLOCK
    return stream


def _drawn(first: LabeledImage, rest: Iterator[LabeledImage], names: Sequence[str]) -> Iterator[tuple[float, Pixels]]:
    """(seconds, picture) of the labelled frames."""
    source = media_video.ahead(_chosen(first, rest), media_video.AHEAD)
    rate = media_video.frame_rate(first.item)
    for picture, pixels, image in source:
        seconds = picture.seconds if picture.seconds is not None else picture.index / rate
        yield seconds, draw_tracks(pixels, image.labels, names)


def _chosen(
    first: LabeledImage, rest: Iterator[LabeledImage]
) -> Iterator[tuple[media_video.Picture, Pixels, LabeledImage]]:
    labelled: LabeledImage | None = first
    try:
        for picture in media_video.pictures(first.item):
            if labelled is None:
                return
            if picture.index == labelled.frame:
                yield picture, picture.pixels(), labelled
                labelled = next(rest, None)
    except UndecodableError:
        if labelled is not None:  # it is in the part that could be decoded when it was labelled
            raise


def _even(picture: Pixels) -> Pixels:
    """H.264 wants even sides: the last row or column is repeated."""
    height, width = picture.shape[:2]
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def draw_tracks(pixels: Pixels, labels: Sequence[Label], names: Sequence[str]) -> Pixels:
    """The frame with each label's mask, outline and name. A track keeps its colour; labels without one take their
    class's."""
    picture = pixels.copy()
    ordered = sorted(labels, key=lambda label: -label.area)  # small objects stay visible on large ones
    for label in ordered:
        _paint(picture, label)
    for label in ordered:
        _write_name(picture, label, names)
    return picture


def _color(label: Label) -> tuple[int, int, int]:
    return class_color(label.class_id if label.track_id is None else label.track_id)


def _paint(picture: Pixels, label: Label) -> None:
    x, y, mask = masks.crop(label.rle)
    if not mask.size:
        return
    part = picture[y : y + mask.shape[0], x : x + mask.shape[1]]
    part[mask] = (part[mask] * (1 - FILL) + np.array(_color(label)) * FILL).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    cv2.drawContours(picture, outline, -1, _color(label), 1 + picture.shape[0] // 720)


def _write_name(picture: Pixels, label: Label, names: Sequence[str]) -> None:
    """`class #track` on a ground of the track's colour, inside the picture, at the top of the box."""
    text = class_name(label.class_id, names) + (f" #{label.track_id}" if label.track_id is not None else "")
    text = text.encode("ascii", "replace").decode()  # the letters OpenCV can draw
    scale = max(0.4, picture.shape[0] / 1400)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = int(min(max(label.box_xywh[0], 0), max(picture.shape[1] - width - 6, 0)))
    y = int(min(max(label.box_xywh[1], 0), max(picture.shape[0] - height - below - 4, 0)))
    color = _color(label)
    cv2.rectangle(picture, (x, y), (x + width + 6, y + height + below + 4), color, -1)
    ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
    cv2.putText(picture, text, (x + 3, y + height + 2), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
