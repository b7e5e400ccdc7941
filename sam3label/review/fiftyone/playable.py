"""Files that play: a folder of frames becomes a video file, since FiftyOne and browsers do not play folders."""

from __future__ import annotations

from pathlib import Path

from sam3label.core.records import MediaItem
from sam3label.errors import InputError, OutputError, UndecodableError
from sam3label.media import video
from sam3label.media.video_writer import VideoWriter

FOLDER = "review"  # in the run folder


def playable(item: MediaItem, run_folder: Path) -> str:
    """Return a file that shows the item: its own, or for a folder of frames an H.264 video made from it once.

    Raises `InputError` when it is gone, `OutputError` when the video cannot be made.
    """
    if not Path(item.path).exists():
        raise InputError(f"{item.path} is gone since it was labelled. Put it back, or label its folder again.")
    if item.kind != "video" or not Path(item.path).is_dir():
        return item.path
    target = run_folder.resolve() / FOLDER / f"{item.id}.mp4"
    if not target.is_file():
        _write_video(item, target)
    return str(target)


def frame_rate(item: MediaItem) -> float:
    """Return frames per second. Raises `InputError` when the file is no longer a video."""
    try:
        return video.frame_rate(item)
    except UndecodableError as error:
        raise InputError(f"{item.path} can no longer be read as it was labelled: {error}.") from error


def _write_video(item: MediaItem, target: Path) -> None:
    """Write every frame once, in order."""
    try:
        with VideoWriter(target, video.frame_rate(item)) as written:
            for picture in video.pictures(item):
                written.write(picture.pixels())
    except UndecodableError as error:
        raise OutputError(f"{item.path} can no longer be decoded as it was labelled: {error}.") from error
