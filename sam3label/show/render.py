"""A run's videos with their tracks drawn on them, as H.264: for people to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3label.core.records import LabeledImage
from sam3label.core.text import count
from sam3label.errors import InputError, OutputError, UndecodableError
from sam3label.media import video as media_video
from sam3label.media.ahead import ahead
from sam3label.media.video_writer import SUFFIXES, VideoWriter
from sam3label.show.draw import Pixels, draw_labels
from sam3label.show.lettering import Fonts

if TYPE_CHECKING:
    from sam3label.run.reader import Run


def render(
    run: Run,
    out: str | Path,
    video: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> int:
    """Draw the run's videos, or the one with id `video`, and return how many there were.

    `out` is the file of one video (.mp4 or .mov), or a folder that gets `NAME.mp4` of each: its id, less its own
    suffix. `on_progress` is called with the number of frames so far, and of all; `on_message` with what a user should
    know of the pictures. Raises InputError when the run has no such video, OutputError when `out` does not fit or
    cannot be written.
    """
    out = Path(out)
    done = 0
    frames = 0
    wanted = _wanted(run, video)
    total = sum(unit.frame_stop - unit.frame_start for unit in run.done_units() if unit.item.id in wanted)
    fonts = Fonts()
    if said := fonts.notice(run.concepts.names):
        on_message(said)
    if single := out.suffix.lower() in SUFFIXES:
        _refuse_several(wanted, out)
    targets = dict.fromkeys(wanted, out) if single else _targets(out, wanted)
    images = (image for image in run.images() if image.item.id in targets)
    for _, group in groupby(images, key=lambda image: image.item.id):
        first = next(group)
        for _ in _write(targets[first.item.id], first, group, run.concepts.names, fonts):
            frames += 1
            on_progress(frames, total)
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


def _targets(out: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """`a/clip.avi` becomes `a/clip.mp4`, unless another video would too: then it keeps its whole name."""
    short = {video_id: PurePosixPath(video_id).with_suffix(".mp4") for video_id in wanted}
    twice = {name for name, times in Counter(short.values()).items() if times > 1}
    return {i: out / (f"{i}.mp4" if name in twice else name) for i, name in short.items()}


def _refuse_several(wanted: Sequence[str], out: Path) -> None:
    if len(wanted) > 1:
        raise OutputError(
            f"the run has {count(len(wanted), 'video')}, and {out} is one file. Choose one with --item {wanted[0]}, "
            "or give a folder with -o."
        )


def _write(
    target: Path, first: LabeledImage, rest: Iterator[LabeledImage], names: Sequence[str], fonts: Fonts
) -> Iterator[None]:
    """Write one video, with a pause after each frame. The file appears whole or not at all."""
    try:
        with VideoWriter(target, media_video.frame_rate(first.item), timed=True) as video:
            for seconds, picture in _drawn(first, rest, names, fonts):
                video.write(picture, seconds)
                yield
    except UndecodableError as error:
        raise OutputError(f"{first.item.path} can no longer be decoded as it was labelled: {error}.") from error


def _drawn(
    first: LabeledImage, rest: Iterator[LabeledImage], names: Sequence[str], fonts: Fonts
) -> Iterator[tuple[float, Pixels]]:
    """Yield (seconds, picture) of the labelled frames."""
    source = ahead(_chosen(first, rest), media_video.AHEAD)
    rate = media_video.frame_rate(first.item)
    for picture, pixels, image in source:
        seconds = picture.seconds if picture.seconds is not None else picture.index / rate
        yield seconds, draw_labels(pixels, image.labels, names, tracks=True, fonts=fonts)


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
    if labelled is not None:
        raise UndecodableError(f"frame {labelled.frame} was labelled, and the video ends before it now")
