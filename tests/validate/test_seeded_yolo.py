"""Sets for Ultralytics, each broken in one way: its own code decides what is lost, and `validate` must say it.

The reader is its data file's check and its dataset class, train with augmentation as a training builds it. A set is
clean if and only if it reads every label and every photo that was meant.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.ultra import read_whole

from sam3label.errors import InputError
from sam3label.validate import validate

# its verifier leaves broken photos open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")

ROW = "0 0.1 0.1 0.5 0.1 0.5 0.5"
OTHER = "1 0.2 0.2 0.9 0.3 0.6 0.8"
BOX = "0 0.5 0.5 0.2 0.2"
DATA = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
PHOTOS = ("train/a", "train/b", "train/c", "val/v")


@dataclass(frozen=True)
class Defect:
    """`rows` and `photos` are what the set's maker meant. `beyond`: why `validate` says more than the loader alone."""

    change: Callable[[Path], None]
    rows: int = 4
    photos: int = 4
    beyond: str = ""


def jpeg(number: int, size: tuple[int, int] = (24, 20), **options: object) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", **options)
    return data.getvalue()


def other(kind: str, mode: str = "RGB", **options: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (24, 20), 90).save(data, kind, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos, a polygon each."""
    root = tmp_path_factory.mktemp("sound")
    for number, name in enumerate(PHOTOS):
        for kind, content in (("images", jpeg(number)), ("labels", ROW.encode() + b"\n")):
            path = root / kind / f"{name}.{'jpg' if kind == 'images' else 'txt'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (root / "data.yaml").write_text(DATA)
    return root


def label(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return put("labels/train/a.txt", data)


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def gone(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return change


def moved(source: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for one in changes:
            one(root)

    return change


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)

    return change


def folder(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return change


def data(text: str) -> Callable[[Path], None]:
    return lambda root: put("data.yaml", text.replace("ROOT", str(root)))(root)


def listed(start: str, photos: str) -> Callable[[Path], None]:
    lines = "".join(f"{start}images/train/{name}.jpg\n" for name in photos)
    return both(put("list.txt", lines), data(DATA.replace("images/train", "list.txt")))


def names(text: str) -> Callable[[Path], None]:
    return data(DATA.replace("names: [cat, dog]", text))


def every_label(text: str) -> Callable[[Path], None]:
    return both(*(put(f"labels/{name}.txt", text) for name in PHOTOS))


NOISE = other("PNG", "RGB")
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
A, LABEL = "images/train/a.jpg", "labels/train/a.txt"
AREA = "removed when augmented, which loading alone does not show"
LINE = "its mask is a line or a point"

ROWS: dict[str, Defect] = {
    "byte order mark": Defect(label("\ufeff" + ROW)),
    "mark inside": Defect(label(ROW + "\n\ufeff" + OTHER), 5),
    "windows line ends": Defect(label(f"{ROW}\r\n{OTHER}\r\n"), 5),
    "old mac line ends": Defect(label(f"{ROW}\r{OTHER}\r"), 5),
    "tabs": Defect(label(ROW.replace(" ", "\t"))),
    "no-break spaces": Defect(label(ROW.replace(" ", "\u00a0"))),
    "form feed between rows": Defect(label(f"{ROW}\f{OTHER}"), 5),
    "vertical tab between rows": Defect(label(f"{ROW}\v{OTHER}"), 5),
    "line separator": Defect(label(f"{ROW}\u2028{OTHER}"), 5),
    "next line": Defect(label(f"{ROW}\u0085{OTHER}"), 5),
    "no last line end": Defect(label(f"{ROW}\n{OTHER}"), 5),
    "blank lines": Defect(label(f"\n\n{ROW}\n\n   \n{OTHER}\n\n"), 5),
    "trailing blanks": Defect(label(f"  {ROW}   \n")),
    "utf-16": Defect(label(ROW.encode("utf-16"))),
    "utf-16 without a mark": Defect(label(ROW.encode("utf-16-le"))),
    "latin-1": Defect(label(ROW.encode() + b"\n# \xe4\xf6\n")),
    "zero bytes": Defect(label(ROW.encode() + b"\0\0\0")),
    "a photo in its place": Defect(label(jpeg(9))),
    "json in its place": Defect(label('{"class": 0, "points": [0.1, 0.1]}')),
    "a comment": Defect(label(f"# cat\n{ROW}")),
    "a comment behind": Defect(label(f"{ROW} # cat")),
    "not a number": Defect(label(ROW.replace("0.1 0.5", "nan 0.5"))),
    "beyond 32 bits": Defect(label(ROW.replace("0.5 0.5", "0.5 1e300"))),
    "infinite": Defect(label(ROW.replace("0.5 0.5", "0.5 inf"))),
    "minus infinite": Defect(label(ROW.replace("0.5 0.5", "0.5 -inf"))),
    "class not a number": Defect(label("nan" + ROW[1:])),
    "class by name": Defect(label("cat" + ROW[1:])),
    "class with a fraction": Defect(label("0.5" + ROW[1:])),
    "class as a float": Defect(label("0.0" + ROW[1:])),
    "class in exponents": Defect(label("1e0" + ROW[1:])),
    "class with a plus": Defect(label("+1" + ROW[1:])),
    "class below 0": Defect(label("-1" + ROW[1:])),
    "class minus 0": Defect(label("-0" + ROW[1:])),
    "class too high": Defect(label("2" + ROW[1:])),
    "class far too high": Defect(label("1e30" + ROW[1:])),
    "class infinite": Defect(label("inf" + ROW[1:])),
    "class in full-width digits": Defect(label("\uff10" + ROW[1:])),
    "commas": Defect(label(ROW.replace(" ", ","))),
    "decimal commas": Defect(label(ROW.replace(".", ","))),
    "semicolons": Defect(label(ROW.replace(" ", "; "))),
    "quotes": Defect(label(f'"{ROW}"')),
    "hexadecimal": Defect(label(ROW.replace("0.5", "0x1p-1"))),
    "exponents": Defect(label(ROW.replace("0.5", "5e-1"))),
    "underscores": Defect(label(ROW.replace("0.5", "0_0.5"))),
    "pixels": Defect(label("0 2 2 10 2 10 10")),
    "just over 1": Defect(label(ROW.replace("0.5", "1.005"))),
    "too far over 1": Defect(label("0 1.05 1.05 1.1 1.05 1.1 1.1")),
    "just below 0": Defect(label("0 -0.005 -0.005 0.5 0.1 0.5 0.5")),
    "a box just below 0": Defect(every_label("0 -0.005 0.5 0.2 0.2")),
    "a box of negative width": Defect(every_label("0 0.5 0.5 -0.005 0.2")),
    "below 0": Defect(label("0 -0.5 -0.5 0.1 -0.4 0.1 0.1")),
    "four values": Defect(label("0 0.5 0.5 0.2")),
    "six values": Defect(label(BOX + " 0.9")),
    "boxes with a score everywhere": Defect(every_label(BOX + " 0.9")),
    "an x without a y": Defect(label(ROW + " 0.3")),
    "a box among polygons": Defect(label(f"{ROW}\n{BOX}"), 5),
    "a photo of boxes among polygons": Defect(label(BOX)),
    "class alone": Defect(label(f"{ROW}\n0"), 5),
    "class alone everywhere": Defect(every_label("0")),
    "one point": Defect(label(f"{ROW}\n0 0.5 0.5"), 5, beyond=LINE),
    "no area": Defect(label("0 0.1 0.1 0.5 0.1 0.3 0.1"), beyond=AREA),
    "three times one point": Defect(label("0 0.1 0.1 0.1 0.1 0.1 0.1"), beyond=AREA),
    "a box without width": Defect(every_label("0 0.5 0.5 0 0.2"), beyond=AREA),
    "the same row twice": Defect(label(f"{ROW}\n{ROW}"), 5),
    "the same row in other words": Defect(label(f"{ROW}\n{ROW.replace('0.1', '1e-1')}"), 5),
    "the same box twice": Defect(every_label(f"{BOX}\n{BOX}"), 8),
    "two polygons in one box": Defect(label(f"{ROW}\n0 0.1 0.1 0.1 0.5 0.5 0.5"), 5),
    "twenty thousand points": Defect(label("0 " + " ".join(f"{i / 20000:.5f} {i % 7 / 10}" for i in range(20_000)))),
    "a thousand rows": Defect(label("\n".join(f"0 0.1 0.1 0.5 0.1 0.5 {0.2 + i / 2000}" for i in range(1000))), 1003),
    "an empty file": Defect(label(""), 3),
    "blanks alone": Defect(label(" \n\t\n"), 3),
}

FILES: dict[str, Defect] = {
    "photo cut off": Defect(put(A, jpeg(0)[:-200])),
    "photo without its end": Defect(put(A, jpeg(0)[:-2])),
    "photo with something behind": Defect(put(A, jpeg(0) + b"\0\0")),
    "photo of no bytes": Defect(put(A, b"")),
    "photo of text": Defect(put(A, b"404 not found " * 9)),
    "photo is a gif": Defect(put(A, other("GIF"))),
    "photo is a png": Defect(put(A, other("PNG"))),
    "photo in CMYK": Defect(put(A, other("JPEG", "CMYK"))),
    "photo in grey": Defect(put(A, other("JPEG", "L"))),
    "photo too small": Defect(put(A, jpeg(0, (40, 9)))),
    "photo just large enough": Defect(put(A, jpeg(0, (10, 10)))),
    "photo turned by exif": Defect(
        put(
            A,
            jpeg(0, exif=TURNED),
        )
    ),
    "png cut off": Defect(both(moved(A, "images/train/a.png"), put("images/train/a.png", other("PNG")[:-20]))),
    "photo is a broken link": Defect(linked(A, "nowhere.jpg")),
    "photo is a folder": Defect(folder(A)),
    "photo gone": Defect(gone(A)),
    "extension in capitals": Defect(moved(A, "images/train/a.JPG")),
    "extension unknown": Defect(moved(A, "images/train/a.jfif")),
    "no extension": Defect(moved(A, "images/train/a")),
    "two photos, one label file": Defect(put("images/train/a.png", other("PNG")), 4, 5),
    "hidden photo": Defect(both(moved(A, "images/train/.a.jpg"), moved(LABEL, "labels/train/.a.txt"))),
    "hidden folder": Defect(both(moved(A, "images/train/.x/a.jpg"), moved(LABEL, "labels/train/.x/a.txt"))),
    "photos in a folder below": Defect(both(moved(A, "images/train/x/a.jpg"), moved(LABEL, "labels/train/x/a.txt"))),
    "no label file": Defect(gone(LABEL), 3),
    "no labels folder": Defect(gone("labels")),
    "no labels of train": Defect(gone("labels/train")),
    "no labels of val": Defect(gone("labels/val")),
    "labels folder misspelt": Defect(moved("labels", "label")),
    "labels beside the photos": Defect(moved("labels/train", "images/train/labels")),
    "label in the wrong folder": Defect(moved(LABEL, "labels/a.txt")),
    "label in another split": Defect(moved(LABEL, "labels/val/a.txt")),
    "label beside the photo": Defect(moved(LABEL, "images/train/a.txt")),
    "label in capitals": Defect(moved(LABEL, "labels/train/a.TXT")),
    "label by another name": Defect(moved(LABEL, "labels/train/a.jpg.txt")),
    "label is a broken link": Defect(linked(LABEL, "nowhere.txt")),
    "label is a folder": Defect(folder(LABEL)),
    "label without a photo": Defect(put("labels/train/d.txt", ROW), 5),
    "labels of a folder without photos": Defect(put("labels/train/below/d.txt", ROW), 5),
    "classes.txt beside the labels": Defect(put("labels/train/classes.txt", "cat\ndog\n")),
    "every label file empty": Defect(every_label(""), 4),
    "no photo at all": Defect(gone(A, "images/train/b.jpg", "images/train/c.jpg", "images/val/v.jpg")),
    "no photo in val": Defect(gone("images/val/v.jpg")),
}

DATA_FILES: dict[str, Defect] = {
    "nc too high": Defect(data(DATA + "nc: 3\n")),
    "nc right": Defect(data(DATA + "nc: 2\n")),
    "nc as text": Defect(data(DATA + "nc: '2'\n")),
    "nc as a float": Defect(data(DATA + "nc: 2.0\n")),
    "nc with a fraction": Defect(data(DATA + "nc: 1.5\n")),
    "nc in words": Defect(data(DATA + "nc: two\n")),
    "nc of nothing": Defect(data(DATA + "nc:\n")),
    "nc instead of names": Defect(names("nc: 2")),
    "nc instead of names, too low": Defect(both(names("nc: 1"), label(OTHER))),
    "neither names nor nc": Defect(names("")),
    "names of nothing": Defect(names("names:")),
    "no names in the list": Defect(names("names: []")),
    "names are one word": Defect(names("names: cat")),
    "names by number": Defect(names("names: {0: cat, 1: dog}")),
    "names by text": Defect(names("names: {'0': cat, '1': dog}")),
    "names by word": Defect(names("names: {cat: 0, dog: 1}")),
    "names with a gap": Defect(names("names: {0: cat, 2: dog}")),
    "names from 1": Defect(names("names: {1: cat, 2: dog}")),
    "names are booleans": Defect(names("names: [yes, no]")),
    "no train": Defect(data(DATA.replace("train: images/train\n", ""))),
    "no val": Defect(data(DATA.replace("val: images/val\n", ""))),
    "train of nothing": Defect(data(DATA.replace("train: images/train", "train:"))),
    "validation instead of val": Defect(data(DATA.replace("val:", "validation:"))),
    "train is a number": Defect(data(DATA.replace("train: images/train", "train: 5"))),
    "train leads nowhere": Defect(data(DATA.replace("images/train", "images/trian"))),
    "val leads nowhere": Defect(data(DATA.replace("images/val", "images/vla"))),
    "test leads nowhere": Defect(data(DATA + "test: images/test\n")),
    "train is a list": Defect(data(DATA.replace("train: images/train", "train: [images/train]"))),
    "one of a list leads nowhere": Defect(data(DATA.replace("images/train", "[images/train, images/more]"))),
    "a folder too high": Defect(data(DATA.replace("images/train", "../images/train"))),
    "path to nothing": Defect(data("path: /nope\n" + DATA)),
    "path from the working directory": Defect(data("path: nope\n" + DATA)),
    "path right": Defect(data("path: ROOT\n" + DATA)),
    "path is a number": Defect(data("path: 5\n" + DATA)),
    "list of photos": Defect(listed("./", "abc")),
    "list with a photo that is gone": Defect(listed("./", "abz")),
    "list from the working directory": Defect(listed("", "abc")),
    "list of nothing": Defect(listed("", "")),
    "val is train": Defect(data(DATA.replace("images/val", "images/train")), 6, 6),
    "broken yaml": Defect(data("train: [images\n")),
    "a list of yaml": Defect(data("- train\n- val\n")),
    "no yaml": Defect(data("")),
    "yaml nested too deeply": Defect(data("a: " + "[" * 3000 + "]" * 3000)),
    "yaml with a mark": Defect(data("\ufeff" + DATA)),
    "class names alike": Defect(names("names: [cat, cat]")),
}  # fmt: skip

DEFECTS = ROWS | FILES | DATA_FILES


def test_there_are_as_many_as_were_found_by_hand() -> None:
    assert len(DEFECTS) == len(ROWS) + len(FILES) + len(DATA_FILES) >= 97


def test_the_sound_set_is_clean(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "set")
    assert validate(tmp_path / "set").findings == ()
    assert read_whole(tmp_path / "set/data.yaml") == (4, 4)


@pytest.mark.parametrize("name", DEFECTS)
def test_what_ultralytics_loses_is_said_and_nothing_else(
    name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect, root = DEFECTS[name], tmp_path / "set"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound, root)
    defect.change(root)
    try:
        report = validate(root / "data.yaml")
        said = [f.what for f in report.findings if f.effect != "note"]
    except InputError as error:
        said = [str(error)]
    os.chdir(tmp_path)
    read = read_whole(root / "data.yaml")  # last: it repairs photos and writes caches
    lost = read != (defect.photos, defect.rows)
    assert not (lost and defect.beyond), f"{read}: the reader sees it by itself"
    assert bool(said) == bool(lost or defect.beyond), f"read {read} of {(defect.photos, defect.rows)}, said {said}"
