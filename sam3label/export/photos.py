"""Photos into datasets: under which name, and by which means. Originals are never touched and their bytes never encoded
anew; frames of video files are written as JPEGs.

Names come from the path relative to the source root, never from the base name alone, and depend on nothing else, so
they stay the same however many images are added later.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import cv2

from sam3label.core.records import LabeledImage
from sam3label.errors import OutputError, UndecodableError
from sam3label.media import video

Placement = Literal["copy", "hardlink", "symlink", "none"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
JPEG_QUALITY = 95
SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")


def label_stem(item_id: str) -> str:
    """The path without extension under which label files (YOLO txt, VOC xml, PNG maps) of an image are kept.

    `a/1.jpg` -> `a/1`; any other extension stays visible (`a/1.png` -> `a/1_png`), so that files that differ in
    their extension alone never share a label file. A folder called `images` becomes `images_`: Ultralytics finds
    labels by replacing the last `/images/` of a path. Different ids have different stems.
    """
    path = PurePosixPath(item_id)
    stem, suffix = path.stem, path.suffix[1:]
    marked = any(stem.lower().endswith("_" + s) for s in SUFFIXES)
    if suffix != "jpg" or marked:
        stem = f"{stem}_{suffix}"
    folders = [_not_images(f) for f in path.parts[:-1]]
    return "/".join([*folders, stem])


def image_name(item_id: str) -> str:
    """The photo's path in formats whose labels are found by its name: `label_stem` with the extension as it was."""
    return label_stem(item_id) + PurePosixPath(item_id).suffix


def _not_images(folder: str) -> str:
    return folder + "_" if folder.rstrip("_") == "images" else folder


class Placer:
    """Puts photos into a dataset by one means. Counts hard links that had to become copies."""

    def __init__(self, means: Placement) -> None:
        self.means = means
        self.copied_instead = 0
        self.written = 0  # frames of videos
        self.film: video.Film | None = None

    def place(self, image: LabeledImage, target: Path) -> None:
        """Raises `OutputError` when the photo is gone or `target` exists already."""
        if self.means == "none":
            return
        source = video.frame_source(image.item, image.frame)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() or target.is_symlink():
            raise OutputError(
                f"the dataset already holds {target.name} (image {image.item.id}). Appending adds new images only: "
                "leave out --append to write the dataset anew, or append to another one."
            )
        try:
            if source is None:
                self._write_frame(image, target)
            else:
                self._put(source, target)
        except FileNotFoundError as error:
            raise OutputError(
                f"the photo {source} is gone since it was labelled. Put it back, label its folder again, "
                "or export labels alone with --images none."
            ) from error

    def _put(self, source: Path, target: Path) -> None:
        if self.means == "symlink":
            if not source.exists():
                raise FileNotFoundError(source)
            target.symlink_to(source.absolute())
        elif self.means == "copy" or not self._linked(source, target):
            shutil.copyfile(source, target)

    def _write_frame(self, image: LabeledImage, target: Path) -> None:
        """Frames come in order, so a video is decoded once. They are the only files here that are encoded anew."""
        if self.film is None or self.film.path != image.item.path:
            self.film = video.Film(image.item.path)
        try:
            pixels = self.film.pixels(image.frame)
        except UndecodableError as error:
            raise OutputError(f"frame {image.frame} of {image.item.path} can no longer be decoded: {error}.") from error
        self.written += 1
        cv2.imwrite(str(target), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])

    def _linked(self, source: Path, target: Path) -> bool:
        """A hard link, where the file system and the file allow one."""
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


def _trainers_repair(path: Path) -> bool:
    """JPEGs without an end marker are rewritten in place by some trainers: through a link that hits the original."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2))
        return file.read() != b"\xff\xd9"
