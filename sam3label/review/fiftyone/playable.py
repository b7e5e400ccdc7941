"""Files that play: a folder of frames becomes a video file, since FiftyOne and browsers do not play folders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sam3label.core.records import MediaItem
from sam3label.core.text import count
from sam3label.errors import InputError, OutputError, UndecodableError, os_reason
from sam3label.media import storage, video
from sam3label.media.video_writer import VideoWriter
from sam3label.run.reader import Run

FOLDER = "review"  # in the run folder
_COPIERS = 16  # objects copied from storage at a time


def playable(run: Run, item: MediaItem) -> str:
    """Return a file that shows the item: its own, or for a folder of frames an H.264 video made from it once.

    What lies in storage is copied into the run folder once (see `copy_remote`). Raises `InputError` when it is gone,
    `OutputError` when the file cannot be made.
    """
    if storage.is_remote(item.path):
        return str(_copied(run, item))
    if not Path(item.path).exists():
        raise InputError(f"{item.path} is gone since it was labelled. Put it back, or label its folder again.")
    if not video.is_folder(item):
        return item.path
    target = run.folder.resolve() / FOLDER / f"{item.id}.mp4"
    if not target.is_file():
        _write_video(item, target)
    return str(target)


def copy_remote(run: Run) -> None:
    """Copy what lies in storage into the run folder, several at a time, as `playable` would one by one.

    Raises `OutputError` where it has more bytes than `SAM3LABEL_CACHE_GB` allows.
    """
    remote = [item for item in run.items() if storage.is_remote(item.path)]
    size, most = sum(stamp.size for item in remote if (stamp := run.stamp(item.id))), storage.cache_bytes()
    if size > most:
        raise OutputError(
            f"the review needs copies of {count(len(remote), 'photo or video', 'photos and videos')} that lie in "
            f"storage, {size / 1e9:.1f} GB, and {storage.CACHE_GB} allows {most / 1e9:g}. Set it to more, or review "
            "the run of a part: sam3label run --shard 1/10 makes one."
        )
    with ThreadPoolExecutor(_COPIERS) as copiers:
        for _ in copiers.map(partial(_copied, run), remote):
            pass


def _copied(run: Run, item: MediaItem) -> Path:
    """Copy an object into the run folder, if that has no copy yet of the content that was labelled."""
    stamp = run.stamp(item.id)
    target = run.folder.resolve() / FOLDER / (stamp.digest[:8] if stamp else "unknown") / item.id
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download(item.path, target)
    except FileNotFoundError as error:
        raise InputError(f"{item.path} is gone since it was labelled.") from error
    except OSError as error:
        raise OutputError(f"{item.path} cannot be copied to {target}: {os_reason(error)}.") from error
    return target


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
