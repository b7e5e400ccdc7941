"""Photos in object storage: found, read and named as on a disk, against a real S3 endpoint on loopback."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fsspec.registry import _registry as fsspec_registry
from support.objects import BUCKET, Store, Weather, forget_connections, proxy

from sam3label.core.records import MediaItem
from sam3label.errors import ExtraMissingError, InputError, UndecodableError
from sam3label.media import storage
from sam3label.media.discovery import discover, find_media
from sam3label.media.image import read_photo
from sam3label.media.stamps import is_unchanged, looked_up, looks_unchanged, stamp_of

PLACE = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    done, data = cv2.imencode(".jpg", np.full((8, 10, 3), 120, np.uint8))
    assert done
    return data.tobytes()


@pytest.fixture(scope="module")
def photos(s3_store: Store, jpeg: bytes) -> str:
    """Photos in nested folders, with what people leave among them."""
    for key in ("a.jpg", "b/1.JPG", "b/2.png", "b/.hidden/3.jpg", ".thumbs/4.jpg", "notes.txt", "c d/ü #1.jpg"):
        s3_store.put(f"photos/{key}", jpeg)
    s3_store.put("photos/b/", b"")  # what consoles make for an empty folder
    s3_store.put("photos-other/z.jpg", jpeg)
    return f"{PLACE}/photos"


def ids(*sources: str) -> list[str]:
    return [item.id for item in discover(sources)]


def refusal(*sources: str) -> str:
    with pytest.raises(InputError) as caught:
        discover(sources)
    return str(caught.value)


def test_a_folder_gives_the_ids_it_would_give_on_a_disk(s3: Store, photos: str, jpeg: bytes, tmp_path: Path) -> None:
    for key in ("a.jpg", "b/1.JPG", "b/2.png", "b/.hidden/3.jpg", ".thumbs/4.jpg", "notes.txt", "c d/ü #1.jpg"):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    there, here = find_media([photos]), find_media([tmp_path])
    assert [(i.id, i.kind) for i in there.items] == [(i.id, i.kind) for i in here.items]
    assert there.skipped == here.skipped
    assert {i.root for i in there.items} == {photos}
    assert all(i.path == f"{photos}/{i.id}" and i.version for i in there.items)
    assert ids(f"{photos}/") == ids(photos)


def test_names_patterns_files_and_buckets(s3: Store, photos: str) -> None:
    assert ids(f"north={photos}/b", f"{photos}/a.jpg") == ["a.jpg", "north/1.JPG", "north/2.png"]
    assert ids(f"{photos}/*/*.png") == ["b/2.png"]
    assert ids(f"{PLACE}/photos*/*.jpg") == ["photos-other/z.jpg", "photos/a.jpg"]
    assert "photos-other/z.jpg" in ids(PLACE)


def test_lists_on_a_disk_and_in_storage(s3: Store, photos: str, tmp_path: Path, jpeg: bytes) -> None:
    s3.put("photos/list.lst", b"# two of them\na.jpg\nb\n../photos-other/z.jpg\n")
    assert ids(f"@{photos}/list.lst") == ["a.jpg", "b/1.JPG", "b/2.png", f"{BUCKET}/photos-other/z.jpg"]
    (tmp_path / "own.jpg").write_bytes(jpeg)
    (tmp_path / "list.txt").write_text(f"own.jpg\n{photos}/a.jpg\n{photos}/gone.jpg\n")
    assert refusal(f"@{tmp_path}/list.txt").endswith(
        f"list.txt, line 3: {photos}/gone.jpg: there is nothing at this address"
    )
    (tmp_path / "list.txt").write_text(f"own.jpg\n{photos}/a.jpg\n")
    assert ids(f"@{tmp_path}/list.txt") == ["own.jpg", f"{BUCKET}/photos/a.jpg"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (f"{PLACE}/nothing", "there is nothing at this address"),
        ("s3://no-such-bucket/photos", "there is nothing at this address"),
        (f"{PLACE}/photos/gone.jpg", "there is nothing at this address"),
        (f"{PLACE}/photos/notes.txt", "cannot label a '.txt' file"),
        ("ftp://site/photos", "ftp:// is no storage that is read here: s3://, gs://"),
        ("https://site/photos/", "a https:// address is one file: name each, or list them in a @list.txt"),
        ("https://me:secret@site/a.jpg", "password or a signature"),
        ("https://site/a.jpg?X-Amz-Signature=secret", "password or a signature"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_a_sentence(s3: Store, photos: str, source: str, told: str) -> None:
    said = refusal(source)
    assert told in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs"), ("az", "adlfs", "az"), ("https", "aiohttp", "https")],
)
def test_a_missing_extra_is_named(scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsspec itself raises where the package is not there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if scheme == "https":
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(fsspec_registry, scheme, raising=False)
    storage.file_system.cache_clear()
    with pytest.raises(ExtraMissingError, match=rf"reading {scheme}:// needs .*pip install 'sam3label\[{extra}\]'"):
        discover([f"{scheme}://site/a.jpg"])


@pytest.mark.parametrize(("scheme", "tag"), [("gs", "md5Hash"), ("az", "content_md5")])
def test_what_fsspec_says_of_other_stores_is_enough(
    scheme: str, tag: str, jpeg: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects in memory behind the address, named and tagged as the package of that store names and tags them."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(DirFileSystem):
        cachable = False

        def __init__(self, **_: object) -> None:
            super().__init__("/buckets", MemoryFileSystem())

        def _join(self, path: str) -> str:
            return super()._join(path.removeprefix(f"{scheme}://"))

        def info(self, path: str, **how: Any) -> dict[str, Any]:
            return self._tagged(super().info(path, **how))

        def find(self, path: str, **how: Any) -> dict[str, Any]:
            return {name: self._tagged(one) for name, one in super().find(path, **how).items()}

        def glob(self, path: str, **how: Any) -> dict[str, Any]:
            return {name: self._tagged(one) for name, one in super().glob(path, **how).items()}

        def _tagged(self, one: dict[str, Any]) -> dict[str, Any]:
            return (
                one if one["type"] == "directory" else {**one, tag: hashlib.md5(self.cat_file(one["name"])).hexdigest()}
            )

    monkeypatch.setitem(fsspec_registry, scheme, Bucket)
    monkeypatch.setenv("SAM3LABEL_CACHE", str(tmp_path))
    storage.file_system.cache_clear()
    place, files = f"{scheme}://site/photos", Bucket()
    for name in ("a.jpg", "b/1.jpg", "b/notes.txt"):
        files.pipe_file(f"{place}/{name}", jpeg)
    assert ids(place) == ["a.jpg", "b/1.jpg"] == ids(f"{place}/**/*.jpg")
    assert [item.path for item in discover([place])] == [f"{place}/a.jpg", f"{place}/b/1.jpg"]
    first, _ = discover([place])
    stamp = stamp_of(first)
    assert read_photo(first.path).pixels.shape == (8, 10, 3) and is_unchanged(first, stamp)
    assert storage.local_copy(first.path).read_bytes() == jpeg
    files.pipe_file(f"{place}/a.jpg", jpeg[::-1])
    (again, _) = discover([place])
    assert not looks_unchanged(again, stamp) and not is_unchanged(again, stamp)
    files.rm_file(f"{place}/a.jpg")
    with pytest.raises(UndecodableError, match="there is nothing at this address"):
        read_photo(first.path)
    assert f"{scheme}://site/empty" in refusal(f"{scheme}://site/empty")
    storage.file_system.cache_clear()


def test_the_hubs_data_sets_are_read_by_what_is_always_there(short_pauses: None) -> None:
    """Without a network: the hub's own file system is asked, and what it says is said in a sentence."""
    from huggingface_hub import HfFileSystem

    storage.file_system.cache_clear()
    assert isinstance(storage.files_of("hf://datasets/someone/photos"), HfFileSystem)
    assert "hf://datasets/someone/photos" in refusal("hf://datasets/someone/photos")


def test_two_photos_of_one_id_are_refused(s3: Store, photos: str) -> None:
    s3.put("photos-other/a.jpg", b"x")
    assert f"pass the folder they share, {PLACE}, instead" in refusal(photos, f"{PLACE}/photos-other")
    s3.remove("photos-other/a.jpg")


def test_numbered_frames_in_storage_are_no_video(s3: Store, jpeg: bytes) -> None:
    for n in range(8):
        s3.put(f"walk/{n:03d}.jpg", jpeg)
    assert len(discover([f"{PLACE}/walk"], videos=False)) == 8
    with pytest.raises(InputError, match="copy the folder here"):
        find_media([f"{PLACE}/walk"], videos=True)


def test_long_listings_come_page_by_page(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(230):
        s3.put(f"many/{n:04d}.jpg", b"x")
    weather = Weather(page=100)
    with proxy(s3.url, weather) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        assert ids(f"{PLACE}/many") == [f"{n:04d}.jpg" for n in range(230)]
        assert weather.seen == 3
        urls = [f"{PLACE}/many/{n:04d}.jpg" for n in range(220)] + [f"{PLACE}/many/gone.jpg"]
        found = dict(storage.stored_objects(urls))
        assert weather.seen == 6  # listed, not asked about one by one
    assert isinstance(found.pop(urls[-1]), FileNotFoundError)
    assert found[urls[0]] == storage.stored_object(urls[0])
    assert len(found) == 220


# ---- reading


def test_a_photo_has_the_pixels_and_the_hash_it_has_on_a_disk(
    s3: Store, photos: str, jpeg: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg)
    there, here = read_photo(f"{photos}/a.jpg"), read_photo(tmp_path / "a.jpg")
    assert np.array_equal(there.pixels, here.pixels)
    assert there.stamp and here.stamp and there.stamp.digest == here.stamp.digest
    with pytest.raises(UndecodableError, match="there is nothing at this address"):
        read_photo(f"{photos}/gone.jpg")


def test_content_tells_whether_an_object_changed(s3: Store, jpeg: bytes, tmp_path: Path) -> None:
    s3.put("stamps/a.jpg", jpeg)
    (item,) = discover([f"{PLACE}/stamps"])
    stamp = stamp_of(item)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    assert stamp.digest == stamp_of(MediaItem("a.jpg", str(tmp_path / "a.jpg"))).digest
    assert looks_unchanged(item, stamp) and is_unchanged(item, stamp)
    s3.put("stamps/a.jpg", jpeg[:-2] + b"xx")
    (now,) = looked_up([item])
    assert not looks_unchanged(now, stamp) and not is_unchanged(now, stamp)
    s3.remove("stamps/a.jpg")
    (gone,) = looked_up([item])
    assert gone.version == 0


def test_a_video_is_hashed_as_on_a_disk(s3: Store, tmp_path: Path) -> None:
    content = bytes(range(256)) * 16384  # 4 MB
    (tmp_path / "a.mp4").write_bytes(content)
    s3.put("stamps/a.mp4", content)
    here = stamp_of(MediaItem("a.mp4", str(tmp_path / "a.mp4"), "video"))
    there = stamp_of(MediaItem("a.mp4", f"{PLACE}/stamps/a.mp4", "video"))
    assert (here.size, here.digest) == (there.size, there.digest)


def test_a_busy_endpoint_is_asked_again(
    s3: Store, photos: str, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, short_pauses: None
) -> None:
    weather = Weather(busy=0.3)
    with proxy(s3.url, weather) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        assert all(storage.read(f"{photos}/a.jpg") == jpeg for _ in range(60))
        assert ids(photos)
    assert weather.refused > 10


def test_an_endpoint_that_is_gone_is_waited_for_once(
    s3: Store, photos: str, monkeypatch: pytest.MonkeyPatch, short_pauses: None
) -> None:
    weather = Weather(until=0)
    with proxy(s3.url, weather) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        with pytest.raises(OSError, match="the storage does not answer, asked 5 times"):
            storage.read(f"{photos}/a.jpg")
        before = weather.seen
        with pytest.raises(OSError, match="the storage does not answer"):
            storage.read(f"{photos}/a.jpg")
        assert weather.seen <= before + 2  # the connection's own second attempt
        weather.until = None
        assert storage.read(f"{photos}/a.jpg")
        assert not storage.silent


# ---- the cache


def test_the_cache_keeps_what_was_used_last_within_its_size(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.CACHE_GB, "0.00001")  # 10 kB
    for name in "abc":
        s3.put(f"kept/{name}.mp4", name.encode() * 4000)
    first = storage.local_copy(f"{PLACE}/kept/a.mp4")
    assert first.read_bytes() == b"a" * 4000
    storage.local_copy(f"{PLACE}/kept/b.mp4")
    time.sleep(0.01)
    assert storage.local_copy(f"{PLACE}/kept/a.mp4") == first
    storage.local_copy(f"{PLACE}/kept/c.mp4")
    held = sorted(path.name for path in storage.cache_folder().rglob("*.mp4"))
    assert held == ["a.mp4", "c.mp4"]
    s3.put("kept/a.mp4", b"new content")
    assert storage.local_copy(f"{PLACE}/kept/a.mp4").read_bytes() == b"new content"
    s3.put("kept/large.mp4", b"x" * 20_000)
    with pytest.raises(OSError, match=f"set {storage.CACHE_GB} to more"):
        storage.local_copy(f"{PLACE}/kept/large.mp4")


def test_a_folder_is_copied_whole(s3: Store) -> None:
    s3.put("refs/labels.json", b"{}")
    s3.put("refs/images/a.jpg", b"1")
    place = storage.local_folder(f"{PLACE}/refs")
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*.*")) == ["images/a.jpg", "labels.json"]
    assert storage.local_folder(f"{PLACE}/refs") == place
    with pytest.raises(FileNotFoundError):
        storage.local_folder(f"{PLACE}/no-refs")


# ---- https


@pytest.fixture
def website(tmp_path: Path, jpeg: bytes) -> Iterator[str]:
    (tmp_path / "a b.jpg").write_bytes(jpeg)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_of_a_website(website: str, jpeg: bytes) -> None:
    (item,) = discover([f"{website}/a%20b.jpg?size=full"])
    assert (item.id, item.kind) == ("a b.jpg", "image")
    assert item.version
    assert read_photo(item.path).pixels.shape == (8, 10, 3)
    assert "there is nothing at this address" in refusal(f"{website}/gone.jpg")
