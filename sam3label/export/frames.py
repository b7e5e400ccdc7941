"""Which frames of a video go into a dataset, and at how many a second that plays."""

from __future__ import annotations

from sam3label.core.records import LabeledImage, MediaItem
from sam3label.errors import OutputError, UndecodableError
from sam3label.media import video

UNKNOWN_RATE = 25.0


class FrameChoice:
    """Every `every`-th frame by its number in the video, or the first one of each 1/`fps` seconds. Photos always go.

    Frames must come in order. Times are frame numbers over the video's average rate.
    """

    def __init__(self, every: int = 1, fps: float | None = None) -> None:
        self.every, self.fps = every, fps
        self.files = video.FrameFiles()
        self.unknown = list[str]()  # videos whose rate could not be read
        self._item, self._tick, self._rate = "", -1, UNKNOWN_RATE

    def keeps(self, image: LabeledImage) -> bool:
        """Return whether a frame is kept. Raises `OutputError` where `fps` meets what has no frame rate."""
        if image.item.kind == "image":
            return True
        if self.fps is None:
            return image.frame % self.every == 0
        if image.item.id != self._item:
            self._item, self._tick, self._rate = image.item.id, -1, _known_rate(image.item)
        tick = int(image.frame / self._rate * self.fps + 1e-6)
        if tick <= self._tick:
            return False
        self._tick = tick
        return True

    def rate(self, item: MediaItem) -> float:
        """Return frames a second of what is kept; that of a video that is gone is taken for 25, and remembered."""
        try:
            rate = video.frame_rate(item)
        except UndecodableError:
            self.unknown.append(item.id)
            rate = UNKNOWN_RATE
        return min(rate, self.fps) if self.fps else rate / self.every


def _known_rate(item: MediaItem) -> float:
    if video.is_folder(item):
        raise OutputError(f"{item.id} is a folder of frames and has no frame rate: thin it with --every N, not --fps.")
    try:
        return video.frame_rate(item)
    except UndecodableError as error:
        raise OutputError(
            f"the frame rate of {item.path} cannot be read ({error}). Put the video back, or use --every N."
        ) from error
