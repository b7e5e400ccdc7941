"""A folder of frames as a film: FiftyOne and browsers play files, not folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam3label.core.records import MediaItem
from sam3label.errors import InputError, OutputError, UndecodableError
from sam3label.media import video

FOLDER = "review"  # in the run folder


def playable(item: MediaItem, run_folder: Path) -> str:
    """The path of a file that shows the item: its own, or for a folder of frames an H.264 film made from it once.

    Raises `InputError` when it is gone, `OutputError` when the film cannot be made.
    """
    if not Path(item.path).exists():
        raise InputError(f"{item.path} is gone since it was labelled. Put it back, or label its folder again.")
    if item.kind != "video" or not Path(item.path).is_dir():
        return item.path
    target = run_folder.resolve() / FOLDER / f"{item.id}.mp4"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        _film(item, target)
    return str(target)


def frame_rate(item: MediaItem) -> float:
    """Frames per second. Raises `InputError` when the file is no longer a video."""
    try:
        return video.frame_rate(item)
    except UndecodableError as error:
        raise InputError(f"{item.path} can no longer be read as it was labelled: {error}.") from error


def _film(item: MediaItem, target: Path) -> None:
    """Every frame once, in order; the film appears whole or not at all."""
    import av

    partial = target.with_name(f".{target.stem}.partial.mp4")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=round(video.frame_rate(item)), options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for picture in video.pictures(item):
                pixels = picture.pixels()
                # H.264 wants even sides: the last row or column is repeated
                pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
                if picture.index == 0:
                    stream.height, stream.width = pixels.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            container.mux(stream.encode(None))
        partial.replace(target)
    except (OSError, av.FFmpegError, UndecodableError) as error:
        raise OutputError(f"the film of {item.path} cannot be written to {target} ({error}).") from error
    finally:
        partial.unlink(missing_ok=True)
