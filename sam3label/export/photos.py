"""Photos into datasets: under which name, and by which means. Originals are never touched and their bytes never encoded
anew, but for photos that are wanted upright and are not; frames of video files are written as JPEGs.

Names come from the path relative to the source root, never from the base name alone, and depend on nothing else, so
they stay the same however many images are added later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import cv2

from sam3label.core.records import LabeledImage
from sam3label.core.text import one_line
from sam3label.errors import OutputError, UndecodableError, os_reason
from sam3label.export.options import Placement
from sam3label.media import storage, upright, video

SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_LONGEST = 255  # bytes of a file name, on every file system of note
_KEPT = 180  # bytes of a longer one, before what tells it from others


def label_stem(item_id: str) -> str:
    """Return the path without extension under which label files (YOLO txt, VOC xml, PNG maps) of an image are kept.

    `a/1.jpg` -> `a/1`; any other extension stays visible (`a/1.png` -> `a/1_png`), so that files that differ in
    their extension alone never share a label file. A folder called `images` becomes `images_`: Ultralytics finds
    labels by replacing the last `/images/` of a path. A name that would become too long for a file system ends in a
    digest. Different ids have different stems.
    """
    path = PurePosixPath(item_id)
    stem, suffix = path.stem, path.suffix[1:]
    marked = any(stem.lower().endswith("_" + s) for s in SUFFIXES)
    if suffix != "jpg" or marked:
        stem = f"{stem}_{suffix}"
    folders = [_not_images(f) for f in path.parts[:-1]]
    return "/".join([*folders, _fitting(stem, suffix, item_id)])


def image_name(item_id: str) -> str:
    """Return the photo's path in formats that find labels by its name: `label_stem` with the extension as it was."""
    return label_stem(item_id) + PurePosixPath(item_id).suffix


def flat_name(item_id: str) -> str:
    """Return the id without folders, `a/1.jpg` -> `a__1.jpg`. Ids whose parts could be told no more end in a digest."""
    path = PurePosixPath(item_id)
    stem = "__".join([*path.parts[:-1], path.stem])
    if stem.split("__") != [*path.parts[:-1], path.stem]:
        stem = f"{stem}_{_digest(item_id)}"
    return _fitting(stem, path.suffix[1:], item_id) + path.suffix


def _fitting(stem: str, suffix: str, item_id: str) -> str:
    if len(f"{stem}.{suffix}".encode(errors="surrogateescape")) <= _LONGEST:
        return stem
    return stem.encode(errors="surrogateescape")[:_KEPT].decode(errors="ignore") + f"_{_digest(item_id)}"


def _digest(item_id: str) -> str:
    return hashlib.blake2b(item_id.encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _not_images(folder: str) -> str:
    return folder + "_" if folder.rstrip("_") == "images" else folder


_FETCHERS = 16  # photos downloaded at a time


class Placer:
    """Puts photos into a dataset by one means; those in storage are downloaded, several at a time, until `finish`.

    Counts hard links that had to become copies, photos that were downloaded, and photos turned.
    """

    def __init__(self, means: Placement) -> None:
        self.means = means
        self.copied_instead = 0
        self.downloaded = 0
        self.turned = 0
        self._files = video.FrameFiles()
        self.video: video.VideoFrames | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._coming: deque[Future[bool]] = deque()

    def __enter__(self) -> Placer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fetchers is not None:
            self._fetchers.shutdown(cancel_futures=True)

    def finish(self) -> None:
        """Wait for what is still being downloaded. Raises what `place` does."""
        while self._coming:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        self.turned += self._coming.popleft().result()

    def place(self, image: LabeledImage, target: Path) -> None:
        """Place the photo. Raises `OutputError`, naming it, when it is gone, cannot be placed, or `target` exists."""
        if self.means == "none":
            return
        source = self._files.source(image.item, image.frame)
        with _in_words(image, source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                raise already_there(image)
            if source is None:
                self._write_frame(image, target)
            elif storage.is_remote(image.item.path):
                self._begin_fetching(image.item.path, target)
            else:
                self._put(source, target)

    def pack(self, image: LabeledImage, archive: ZipFile, name: str, scratch: Path) -> None:
        """Put the photo into a zip under a name; `scratch` is a path that is free for what must be written first.

        Raises `OutputError`, naming the photo, when it is gone.
        """
        if self.means == "none":
            return
        source = self._files.source(image.item, image.frame)
        with _in_words(image, source, scratch):
            if storage.is_remote(image.item.path) and source is not None:
                self.turned += self._fetch(image.item.path, scratch)
                self.downloaded += 1
            elif source is None:
                self._write_frame(image, scratch)
            elif self.means == "upright" and upright.is_turned(source):
                _turn(source, scratch, source)
                self.turned += 1
            else:
                archive.write(source, name)
                return
            archive.write(scratch, name)
            scratch.unlink()

    def _put(self, source: Path, target: Path) -> None:
        if self.means == "symlink":
            if not source.exists():
                raise FileNotFoundError(source)
            target.symlink_to(source.absolute())
        elif self.means == "upright" and upright.is_turned(source):
            _turn(source, target, source)
            self.turned += 1
        elif self.means == "copy" or not self._linked(source, target):
            shutil.copyfile(source, target)

    def _begin_fetching(self, url: str, target: Path) -> None:
        """Begin to download a photo; an error of an earlier one is raised here, or by `finish`."""
        self._fetchers = self._fetchers or ThreadPoolExecutor(_FETCHERS)
        target.touch()  # a name that no file system takes is refused here
        self._coming.append(self._fetchers.submit(self._fetch, url, target))
        self.downloaded += 1
        if len(self._coming) > 4 * _FETCHERS:
            self._wait_for_one()

    def _fetch(self, url: str, target: Path) -> bool:
        """Download a photo. One that EXIF turns is turned where that is wanted; return whether it was."""
        try:
            storage.download(url, target)
        except OSError as error:
            raise OutputError(f"{url} cannot be downloaded: {os_reason(error)}. No dataset was written.") from error
        wanted = self.means == "upright" and upright.is_turned(target)
        if wanted:
            _turn(target, target, url)
        return wanted

    def _write_frame(self, image: LabeledImage, target: Path) -> None:
        """Write a frame as JPEG. Frames come in order, so a video is decoded once."""
        if self.video is None or self.video.path != image.item.path:
            self.video = video.VideoFrames(image.item.path)
        try:
            pixels = self.video.pixels(image.frame)
        except UndecodableError as error:
            raise OutputError(f"frame {image.frame} of {image.item.path} can no longer be decoded: {error}.") from error
        done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, upright.JPEG_QUALITY])
        if not done:
            raise OutputError(f"frame {image.frame} of {image.item.path} cannot be written as a JPEG.")
        target.write_bytes(data.tobytes())

    def _linked(self, source: Path, target: Path) -> bool:
        """Make a hard link, and return whether the file system and the file allow one."""
        if _trainers_repair(source):
            return False
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another device, a file system without links, too many links, not permitted
            self.copied_instead += 1
            return False
        return True


def _turn(source: Path, target: Path, shown: str | Path) -> None:
    try:
        upright.write_upright(source, target)
    except (ValueError, SyntaxError) as error:
        raise OutputError(
            f"{shown} cannot be turned upright ({error}). Place it as it is: --images hardlink."
        ) from error


def already_there(image: LabeledImage) -> OutputError:
    return OutputError(
        f"the dataset already holds {one_line(image.item.id)}. Appending adds new images only: leave out --append to "
        "write the dataset anew, or append to another one."
    )


@contextmanager
def _in_words(image: LabeledImage, source: Path | None, target: Path) -> Iterator[None]:
    """Raise `OutputError` for a photo that is gone or whose name is too long."""
    try:
        yield
    except FileNotFoundError as error:
        raise OutputError(
            f"the photo {source} is gone since it was labelled. Put it back, label its folder again, "
            "or export labels alone with --images none."
        ) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(
                f"the name of {image.item.id} is too long for a dataset in {target.parents[1]}: give the file a "
                "shorter one, choose a shorter -o, or leave out --flat."
            ) from error
        raise


def _trainers_repair(path: Path) -> bool:
    """Return whether some trainers rewrite the JPEG in place (no end marker): through a link that hits the original."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2))
        return file.read() != b"\xff\xd9"
