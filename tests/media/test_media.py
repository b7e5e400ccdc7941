"""Discovery of files, and the decoder, on real files only."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from support import oddfiles

from sam3label.errors import InputError, UndecodableError
from sam3label.media import image as image_file
from sam3label.media import memory
from sam3label.media.discovery import discover, find_media
from sam3label.media.image import decode_image

JPEG = oddfiles.encoded(oddfiles.photo()[:8, :8], "JPEG")


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)
    return root


def ids(*sources: str | Path, videos: bool = False) -> list[str]:
    return [item.id for item in discover(sources, videos=videos)]


def refusal(*sources: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        discover(sources)
    return str(caught.value)


# ---- discovery -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_by_path_relative_to_it(tmp_path: Path) -> None:
    write(tmp_path, "b/2.jpg", "b/1.JPG", "a.png", "c/d/e.tiff", "B.webp", "z.bmp", "y.tif", "x.jpeg")
    assert ids(tmp_path) == ["B.webp", "a.png", "b/1.JPG", "b/2.jpg", "c/d/e.tiff", "x.jpeg", "y.tif", "z.bmp"]
    for item in discover([tmp_path]):
        assert item.path == str(tmp_path / item.id) and item.kind == "image"


def test_paths_are_absolute_whatever_the_source_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    for source in ("photos", "./photos/", "photos/../photos", "photos/a.jpg"):
        assert discover([source])[0].path == str(tmp_path / "photos" / "a.jpg")


def test_hidden_files_and_folders_are_skipped_unless_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", ".b.jpg", ".c/d.jpg", "._a.jpg")
    assert ids(tmp_path) == ["a.jpg"]
    assert ids(tmp_path / ".c") == ["d.jpg"]


def test_other_files_in_a_folder_are_counted_by_suffix(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.HEIC", "c.heic", "d.mp4", "e.MOV", "README")
    found = find_media([tmp_path])
    assert [item.id for item in found.items] == ["a.jpg"]
    assert found.skipped == {".heic": 2, ".mp4": 1, ".mov": 1, "": 1}
    assert found.videos_skipped == 2


def test_videos_are_items_where_they_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "d.mp4", "e.MOV", "f.avi", "g.mkv", "h.webm")
    found = find_media([tmp_path], videos=True)
    assert {item.id: item.kind for item in found.items} == {"a.jpg": "image"} | dict.fromkeys(
        ["d.mp4", "e.MOV", "f.avi", "g.mkv", "h.webm"], "video"
    )
    assert found.videos_skipped == 0


def test_a_file_of_an_unknown_kind_is_an_error_when_named(tmp_path: Path) -> None:
    write(tmp_path, "a.heic", "b.mp4")
    assert refusal(tmp_path / "a.heic") == (
        f"{tmp_path}/a.heic: cannot label a '.heic' file; allowed: .bmp .jpeg .jpg .png .tif .tiff .webp"
    )
    assert refusal(tmp_path / "b.mp4") == f"{tmp_path}/b.mp4: this is a video, and only images are labelled here"


def test_a_missing_source_is_an_error_with_a_near_name(tmp_path: Path) -> None:
    write(tmp_path, "photos/a.jpg")
    assert refusal(tmp_path / "fotos") == f"{tmp_path}/fotos: no such file or folder (did you mean photos?)"
    assert refusal(tmp_path / "no" / "where") == f"{tmp_path}/no/where: no such file or folder"


def test_all_wrong_sources_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.heic")
    message = refusal(tmp_path / "nowhere", tmp_path / "a.heic", str(tmp_path / "*.gif"))
    assert [line.split(": ", 1)[1][:20] for line in message.splitlines()] == [
        "no such file or fold", "cannot label a '.hei", "the pattern matches "
    ]  # fmt: skip


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    lines = refusal(*(tmp_path / f"missing{i}" for i in range(30))).splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 10 more"


def test_nothing_to_label_is_an_error_saying_what_was_looked_for(tmp_path: Path) -> None:
    assert refusal() == "no photos given: name at least one file or folder"
    assert refusal(tmp_path) == (
        f"no images found in {tmp_path}: looked for .bmp .jpeg .jpg .png .tif .tiff .webp, and no other files are there"
    )
    write(tmp_path, "a.heic", "b.heic", "c.mp4")
    assert refusal(tmp_path).endswith("(found only: 2 .heic, 1 .mp4)")


def test_two_sources_with_the_same_relative_name_collide(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    assert refusal(tmp_path / "a", tmp_path / "b") == (
        f"{tmp_path}/b/1.jpg: it would be called '1.jpg' like {tmp_path}/a/1.jpg: "
        f"pass the folder they share, {tmp_path}, instead, or give one source a name: more={tmp_path}/b"
    )
    assert ids(tmp_path) == ["a/1.jpg", "b/1.jpg"]


def test_a_named_source_puts_its_name_before_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/1.jpg", "b/x/1.jpg", "c=d/1.jpg")
    items = discover([f"east={tmp_path}/a", f"west={tmp_path}/b"])
    assert [(i.id, i.root) for i in items] == [("east/1.jpg", f"{tmp_path}/a"), ("west/x/1.jpg", f"{tmp_path}/b")]
    assert [(i.id, i.root) for i in discover([tmp_path / "b"])] == [("x/1.jpg", f"{tmp_path}/b")]
    monkeypatch.chdir(tmp_path)
    assert ids("c=d") == ["1.jpg"]  # a folder of that name is what it is
    assert "no such file or folder" in refusal("e=nowhere")


def test_links_out_of_the_tree_are_told_and_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, "in/1.jpg", "out/2.jpg", "out/more/3.jpg")
    (tmp_path / "in/file.jpg").symlink_to(tmp_path / "out/2.jpg")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out/more")
    (tmp_path / "in/inside.jpg").symlink_to(tmp_path / "in/1.jpg")
    found = find_media([tmp_path / "in"])
    assert [i.id for i in found.items] == ["1.jpg", "file.jpg", "folder/3.jpg", "inside.jpg"]
    assert found.links_out == (f"{tmp_path}/in/file.jpg", f"{tmp_path}/in/folder")
    left = find_media([tmp_path / "in"], links=False)
    assert [i.id for i in left.items] == ["1.jpg", "inside.jpg"]
    assert left.links_out == found.links_out


def test_overlapping_sources_are_refused_and_repeated_ones_are_one(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg")
    assert "two sources reach it, which overlap" in refusal(tmp_path, tmp_path / "a")
    assert ids(tmp_path, tmp_path) == ["a/1.jpg"]


def test_a_glob_gives_ids_relative_to_its_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "p/a/1.jpg", "p/b/2.jpg", "p/b/2.txt", "p/c/3.png")
    assert ids(f"{tmp_path}/p/*/*.jpg") == ["a/1.jpg", "b/2.jpg"]
    assert ids(f"{tmp_path}/p/[bc]") == ["b/2.jpg", "c/3.png"]
    assert ids(f"{tmp_path}/p/**") == ["a/1.jpg", "b/2.jpg", "c/3.png"]
    monkeypatch.chdir(tmp_path / "p" / "a")
    assert ids("*.jpg") == ["1.jpg"]
    assert refusal("*.gif") == "*.gif: the pattern matches nothing"


def test_a_recursive_glob_survives_links_in_circles(tmp_path: Path) -> None:
    write(tmp_path, "p/a/1.jpg", "p/2.jpg")
    (tmp_path / "p" / "a" / "up").symlink_to("..")
    for pattern in ("p/**", "p/**/*.jpg", "*/**/*.jpg"):
        assert [name.removeprefix("p/") for name in ids(f"{tmp_path}/{pattern}")] == ["2.jpg", "a/1.jpg"]


def test_a_name_with_wildcards_that_exists_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "a[1].jpg")
    assert ids(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_a_list_of_paths(tmp_path: Path) -> None:
    write(tmp_path, "here/a.jpg", "here/sub/b.jpg", "here/sub/c.txt", "other/c.jpg")
    listing = tmp_path / "here" / "list.txt"
    listing.write_text(f"\ufeff# photos\n\na.jpg\r\n  sub \n../other/c.jpg\n{tmp_path}/here/a.jpg\n", encoding="utf-8")
    outside = f"{tmp_path}/other/c.jpg".lstrip("/")
    assert ids(f"@{listing}") == sorted(["a.jpg", "sub/b.jpg", outside])


def test_a_list_names_its_wrong_lines(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.txt")
    listing = tmp_path / "list.txt"
    listing.write_text("a.jpg\nA.jpg.\n\nb.txt\n")
    assert refusal(f"@{listing}").splitlines() == [
        f"{listing}, line 2: no such file or folder: A.jpg. (did you mean a.jpg?)",
        f"{listing}, line 4: b.txt: cannot label a '.txt' file; allowed: .bmp .jpeg .jpg .png .tif .tiff .webp",
    ]


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00binary")
    assert refusal(f"@{tmp_path}/list.txt") == (
        f"@{tmp_path}/list.txt: not a text file in UTF-8; a list has one path per line"
    )
    assert refusal(f"@{tmp_path}/lst.txt") == (
        f"@{tmp_path}/lst.txt: no such file or directory (did you mean list.txt?)"
    )


def test_links_never_loop_and_never_change_the_ids_of_real_folders(tmp_path: Path) -> None:
    write(tmp_path, "in/z/1.jpg", "out/2.jpg")
    (tmp_path / "in" / "a-link").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "z" / "up").symlink_to("..")
    (tmp_path / "in" / "outside").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "copy.jpg").symlink_to("z/1.jpg")
    assert ids(tmp_path / "in") == ["copy.jpg", "outside/2.jpg", "z/1.jpg"]


def test_cross_linked_folders_are_walked_once_each(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path, f"{i:02}/x.jpg")
    for i in range(12):
        for j in range(12):
            (tmp_path / f"{i:02}" / f"to{j}").symlink_to(tmp_path / f"{j:02}")
    assert ids(tmp_path) == [f"{i:02}/x.jpg" for i in range(12)]


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(JPEG)
    assert refusal(tmp_path) == (
        f"{tmp_path}/caf\\xe9.jpg: the name is not UTF-8 text, which no label format can hold: rename it"
    )


AS_NOBODY = """
    import os, sys
    from sam3label.errors import InputError, UndecodableError
    from sam3label.media.discovery import discover
    from sam3label.media.image import decode_image

    if os.getuid() == 0:
        os.setuid(65534)  # root may read everything
    root = sys.argv[1]
    try:
        discover([root])
    except InputError as error:
        print(error)
    print([item.id for item in discover([root + "/open"])])
    try:
        decode_image(root + "/open/secret.jpg")
    except UndecodableError as error:
        print(error)
"""


def test_what_may_not_be_read_is_named_and_never_looks_empty(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("closed")
    own = next(parent for parent in root.parents if parent.name.startswith("pytest-of-"))
    for folder in (root, *(parent for parent in root.parents if parent.is_relative_to(own))):
        folder.chmod(0o755)
    write(root, "open/a.jpg", "open/secret.jpg", "shut/b.jpg")
    (root / "open" / "secret.jpg").chmod(0)
    (root / "shut").chmod(0)
    try:
        script = [sys.executable, "-W", "error", "-c", textwrap.dedent(AS_NOBODY), str(root)]
        result = subprocess.run(script, capture_output=True, text=True, check=False)
    finally:
        (root / "shut").chmod(0o755)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{root}/shut: the folder cannot be read: permission denied",
        "['a.jpg', 'secret.jpg']",
        "permission denied",
    ]


# ---- decoding ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[oddfiles.Odd]]:
    root = tmp_path_factory.mktemp("odd")
    return root, oddfiles.write(root)


def test_every_odd_file_comes_out_as_expected(odd: tuple[Path, list[oddfiles.Odd]]) -> None:
    root, expected = odd
    assert len(expected) >= 30
    assert {item.id for item in discover([root])} == {file.name for file in expected}
    for file in expected:
        if file.size_hw is not None:
            pixels = decode_image(root / file.name)
            assert pixels.shape == (*file.size_hw, 3), file
            assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable, file
        else:
            with pytest.raises(UndecodableError) as caught:
                decode_image(root / file.name)
            assert file.reason in str(caught.value) and len(str(caught.value)) < 80, file


COLOURS_KEPT = [name for name, (_, want) in oddfiles.FILES.items() if want == oddfiles.SIZE and not name.startswith(
    ("grey", "float", "one-bit", "palette-transparent", "rgba"))]  # fmt: skip


@pytest.mark.parametrize("name", COLOURS_KEPT)
def test_the_first_frame_comes_out_upright_and_in_its_colours(name: str, odd: tuple[Path, list[oddfiles.Odd]]) -> None:
    pixels = decode_image(odd[0] / name).astype(int)
    corners = [pixels[y, x] for y, x in ((10, 10), (10, -10), (-10, 10), (-10, -10))]
    wanted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert np.abs(np.array(corners) - wanted).max() < 30
    assert np.abs(pixels - oddfiles.photo()).mean() < 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(orientation: int, format: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(oddfiles.rotated(orientation, format))
    pixels = decode_image(tmp_path / "x").astype(int)
    assert pixels.shape == (90, 120, 3)
    assert np.abs(pixels - oddfiles.photo()).mean() < 3


def test_an_orientation_beyond_the_eight_means_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    (tmp_path / "x.jpg").write_bytes(oddfiles.encoded(oddfiles.photo(), "JPEG", exif=exif.tobytes()))
    assert decode_image(tmp_path / "x.jpg").shape == (90, 120, 3)


def decoded(content: bytes, tmp_path: Path) -> npt.NDArray[np.uint8]:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    return decode_image(path)


def test_transparency_is_shown_over_white(tmp_path: Path) -> None:
    pixels = decoded(oddfiles.encoded(oddfiles.transparent(), "PNG"), tmp_path)
    assert (pixels[:, :60] == 255).all()
    assert (pixels[:, 60:] == oddfiles.photo()[:, 60:]).all()


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = decoded(oddfiles.encoded(image, "PNG", transparency=0), tmp_path)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("top", "shift"), [(200, 0), (1023, 2), (4095, 4), (16383, 6), (65535, 8)])
def test_integer_grey_keeps_the_top_eight_bits_of_its_depth(top: int, shift: int, format: str, tmp_path: Path) -> None:
    values = np.linspace(0, top, 600).round().astype(np.uint16).reshape(20, 30)
    pixels = decoded(oddfiles.encoded(values, format), tmp_path)
    assert (pixels == (values >> shift)[..., None]).all()


def test_signed_and_wide_integers(tmp_path: Path) -> None:
    values = np.array([[-5, 0, 255, 2**20 - 1]], np.int32)
    assert decoded(oddfiles.encoded(values, "TIFF"), tmp_path)[0, :, 0].tolist() == [0, 0, 0, 15]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 99.6, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [255, 255, 255]),
        ([float("nan"), 290.0, 310.0], [0, 0, 255]),
        ([float("nan"), float("nan"), float("-inf")], [0, 0, 0]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([7e5, 7e5, 7e5], [0, 0, 0]),
    ],
)
def test_float_grey(values: list[float], want: list[int], tmp_path: Path) -> None:
    pixels = decoded(oddfiles.encoded(np.array([values], np.float32), "TIFF"), tmp_path)
    assert pixels[0, :, 0].tolist() == want


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.arange(60 * 60 * 3, dtype=np.uint16).reshape(60, 60, 3) * 6
    for suffix in (".png", ".tiff"):
        content = cv2.imencode(suffix, values[..., ::-1])[1].tobytes()
        assert (decoded(content, tmp_path) == values >> 8).all()


def test_inverted_cmyk_as_adobe_writes_it(tmp_path: Path) -> None:
    """PIL writes and reads CMYK JPEGs the Adobe way; a red corner must not come out cyan."""
    pixels = decoded(oddfiles.FILES["cmyk.jpg"][0](), tmp_path)
    assert np.abs(pixels[5, 5].astype(int) - [255, 0, 0]).max() < 30


def test_the_quick_decoder_gives_the_pixels_of_the_careful_one(tmp_path: Path) -> None:
    for options in ({"quality": 75}, {"quality": 95, "subsampling": 0}, {"progressive": True}):
        content = oddfiles.encoded(oddfiles.photo(), "JPEG", **options)
        quick = image_file.decode_jpeg(content)
        assert quick is not None
        with Image.open(io.BytesIO(content)) as image:
            assert np.abs(quick.astype(int) - np.array(image)).max() <= 1
        assert (decoded(content, tmp_path) == quick).all()


def test_lab_colours_are_not_taken_for_rgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(oddfiles.photo()), to_lab)
    assert lab is not None
    pixels = decoded(oddfiles.encoded(lab, "TIFF"), tmp_path).astype(int)
    assert np.abs(pixels - oddfiles.photo()).mean() < 4


def test_a_vanished_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UndecodableError, match="no such file or directory"):
        decode_image(tmp_path / "gone.jpg")
    with pytest.raises(UndecodableError, match="not a regular file"):
        decode_image(tmp_path)


WHOLE = {name: content() for name, (content, want) in oddfiles.FILES.items()
         if want == oddfiles.SIZE and "/" not in name and "exif" not in name}  # fmt: skip


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path, name: str, at: float) -> None:
    content = WHOLE[name]
    try:
        pixels = decoded(content[: int(len(content) * at)], tmp_path)
    except UndecodableError:
        return
    assert (pixels == decoded(content, tmp_path)).all(), name


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8))
def test_flipped_bytes_end_in_pixels_or_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(WHOLE[name])
    for at, value in flips:
        content[int(at * len(content))] = value
    try:
        assert decoded(bytes(content), tmp_path).ndim == 3
    except UndecodableError as error:
        assert 0 < len(str(error)) < 80
    capfd.readouterr()  # libjpeg remarks on flaws by itself


def test_the_first_page_of_a_tiff_counts_and_one_of_an_unusual_kind_is_called_that(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert (decode_image(tmp_path / "pages.tif") == (255, 0, 0)).all()
    cv2.imwrite(str(tmp_path / "floats.tif"), np.zeros((10, 20, 3), np.float64))
    with pytest.raises(UndecodableError, match="a TIFF of an unusual kind, or damaged: save it as RGB or grey"):
        decode_image(tmp_path / "floats.tif")


def test_a_photo_beyond_the_limit_is_refused_by_its_header_and_the_way_out_works(tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("L", (2_000, 1_000)).save(small)
    with pytest.raises(UndecodableError, match=r"\(2000 x 1000\): --max-megapixels 2 reads it"):
        image_file.read_photo(small, 1)
    assert image_file.read_photo(small, 2).pixels.shape == (1_000, 2_000, 3)


def test_the_budget_of_a_photo_is_what_fits_into_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.png"
    Image.new("L", (10_000, 9_000)).save(large, compress_level=1)
    assert image_file.read_photo(large).pixels.shape == (9_000, 10_000, 3)
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000_000)
    with pytest.raises(UndecodableError, match=r"^too large \(10000 x 9000\): --max-megapixels 90 reads it"):
        image_file.read_photo(large)
    monkeypatch.undo()
    assert memory.megapixels_that_fit(1, 8_000_000_000) == 281
    assert memory.megapixels_that_fit(3, 8_000_000_000) == 93
    assert memory.megapixels_that_fit(9, 8_000_000_000) == 64, "what cameras make is read whatever is free"


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path: Path) -> None:
    for name, text in (
        ("proc/meminfo", "MemTotal: 16000 kB\nMemAvailable:    8000 kB\n"),
        ("sys/fs/cgroup/memory.max", "max\n"),
        ("sys/fs/cgroup/memory.current", "1000000\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.free_memory(tmp_path) == 8_192_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3000000\n")
    assert memory.free_memory(tmp_path) == 2_000_000
    assert memory.free_memory(tmp_path / "nothing") > 0, "half of all there is"


def test_more_than_pils_limit_is_read_where_it_is_allowed_and_pils_limit_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    path = tmp_path / "x.png"
    Image.new("RGB", (200, 100), "red").save(path)
    assert image_file.read_photo(path).pixels.shape == (100, 200, 3)
    assert image_file.upright_size(path) == (100, 200)
    assert Image.MAX_IMAGE_PIXELS == 1_000


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK"])
def test_large_photos_become_rgb_band_by_band(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    if mode == "P":
        picture.info["transparency"] = 3
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    whole = decode_image(path)
    monkeypatch.setattr("sam3label.media.image.BAND", 7 * 30)
    np.testing.assert_array_equal(decode_image(path), whole)
