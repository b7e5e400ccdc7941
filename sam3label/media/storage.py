"""Objects in storage: s3://, gs://, az://, hf:// and https:// addresses, through fsspec. Nothing else opens one.

An object is listed once, with what tells its content from the next (`StoredObject.version`), and read whole, again and
again with longer pauses until the storage answers. What it cannot give is an `OSError` whose text is fit for people.
Credentials are those the libraries find for themselves (environment, configuration files, the machine's role).
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import random
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from sam3label.errors import ExtraMissingError, InputError

# scheme -> the extra that brings its package, which fsspec imports; hf:// comes with what is always there
EXTRAS = {"s3": "s3", "gs": "gs", "az": "az", "hf": None, "https": "https", "http": "https"}
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SECRET = re.compile(r"signature|token|secret|password|credential|^sig$|^key$|api-?key", re.IGNORECASE)

PAUSES = (0.3, 1.0, 3.0, 9.0)  # seconds before the next attempt, give or take a half
_ASKERS = 32  # objects asked about at a time
_LISTED = 200  # objects of one folder from which it is listed rather than each of them asked about
_TAGS = ("ETag", "md5Hash", "content_md5", "etag", "blob_id", "Content-MD5", "Digest", "generation",
         "LastModified", "last_modified", "Last-Modified", "mtime")  # fmt: skip
CACHE, CACHE_GB = "SAM3LABEL_CACHE", "SAM3LABEL_CACHE_GB"
_USUAL_GB = 50.0

T = TypeVar("T")
silent = set[str]()  # stores that did not answer the last time, however often they were asked


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object by its address. `version` is a number made of its size and etag; `size` in bytes, -1 where unknown."""

    url: str
    size: int
    version: int


# ---- addresses


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address in storage: `s3://bucket/a.jpg`, and not `/data/a.jpg`."""
    return isinstance(path, str) and _REMOTE.match(path) is not None


def plain_path(url: str) -> str:
    """Return an address without scheme and query, as ids have it: `bucket/a b.jpg` of `https://bucket/a%20b.jpg?v=1`.

    >>> plain_path("s3://bucket/photos/a.jpg")
    'bucket/photos/a.jpg'
    """
    if not url.lower().startswith("http"):
        return url.partition("://")[2]
    parts = urlsplit(url)
    return parts.netloc + unquote(parts.path)


def parent(url: str) -> str:
    """Return the address of the folder that an object is in."""
    scheme, _, path = url.partition("://")
    return f"{scheme}://{posixpath.dirname(path.partition('?')[0] if scheme.startswith('http') else path)}"


def joined(folder: str, path: str) -> str:
    """Return the address of a relative path: `s3://bucket/b.jpg` of `s3://bucket/a` and `../b.jpg`."""
    scheme, _, base = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(base, path))}"


def _refuse_secrets(url: str) -> None:
    """Raise `InputError` for an address with a secret in it: it would be kept in the run and printed."""
    parts = urlsplit(url)
    signed = any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or (signed and parts.scheme.lower().startswith("http")):
        plain = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise InputError(
            f"{plain} was given with a password or a signature, which would be kept in the run. Leave it out: "
            "credentials come from the environment or the storage's own configuration (s3:// instead of signed https://)"
        )


# ---- the library behind a scheme


def files_of(url: str) -> Any:
    """Return fsspec's file system for an address. Raises `InputError` for an unknown scheme, `ExtraMissingError`."""
    _refuse_secrets(url)
    return file_system(url.partition("://")[0].lower(), os.getpid())


@lru_cache(maxsize=16)
def file_system(scheme: str, _process: int) -> Any:
    import fsspec

    if scheme not in EXTRAS:
        raise InputError(f"{scheme}:// is no storage that is read here: {', '.join(f'{s}://' for s in EXTRAS)} are")
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **given}  # patience is ours alone
    try:
        files = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise ExtraMissingError(EXTRAS[scheme] or "hf", f"reading {scheme}://") from error
    if scheme == "s3":
        files.retries = 1
    return files


def _patiently(url: str, do: Callable[[], T]) -> T:
    """Return what `do` returns, tried again after longer and longer pauses while it may be a matter of time.

    A store that did not answer in all that time gets a single attempt for each object until it answers again: a run
    over a million objects ends, with each of them named as failed, and the next one finds them.
    """
    store = "/".join(url.split("/")[:3])
    pauses = () if store in silent else PAUSES
    for pause in (*pauses, None):
        try:
            value = do()
        except Exception as error:  # libraries raise dozens of kinds
            lasting = _lasting(error)
            if lasting is not None:
                silent.discard(store)
                raise lasting from error
            if pause is None:
                silent.add(store)
                tries = "" if len(pauses) == 0 else f", asked {len(pauses) + 1} times"
                raise OSError(errno.EIO, f"the storage does not answer{tries} ({_short(error)})") from error
            time.sleep(pause * random.uniform(0.5, 1.5))
        else:
            silent.discard(store)
            return value
    raise AssertionError  # the last attempt returned or raised


def _lasting(error: Exception) -> OSError | None:
    """Return an error that no other attempt would change, in words; None for what may pass."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    text = f"{type(error).__name__} {error}"
    if isinstance(error, FileNotFoundError | IsADirectoryError) or status in (404, 410):
        return _nothing_there()
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, "the storage refuses access: look at the credentials and their rights")
    if re.search(r"Credential|Unauthorized|AnonymousCaller|DefaultCredentialsError", text):
        return PermissionError(errno.EACCES, "the storage was given no credentials: set them as for its own tools")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return error
    refused = isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG)
    if refused or isinstance(error, ValueError | TypeError | NotImplementedError | AttributeError) or status == 400:
        return OSError(errno.EINVAL, f"the storage does not take this request ({_short(error)})")
    return None


def _nothing_there() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is nothing at this address")


def _short(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 120 else text[:117] + "..."


# ---- looking


def stored_object(url: str) -> StoredObject:
    """Return an object by its address. Raises OSError where there is none, or the storage does not say."""
    files = files_of(url)
    found = _patiently(url, lambda: files.info(url))
    if found.get("type") == "directory":
        raise _nothing_there()
    return _object(url, found)


def stored_objects(urls: Iterable[str]) -> Iterator[tuple[str, StoredObject | OSError]]:
    """Yield each address with its object, or why there is none. Folders with many of them are listed instead."""
    by_folder = defaultdict[str, list[str]](list)
    for url in urls:
        by_folder[parent(url)].append(url)
    few: list[str] = []
    for folder, own in by_folder.items():
        if len(own) < _LISTED or folder.lower().startswith("http"):
            few += own
            continue
        wanted = set(own)
        there = {one.url: one for one in listing(folder, deep=False) if one.url in wanted}
        yield from ((url, there.get(url) or _nothing_there()) for url in own)
    with ThreadPoolExecutor(_ASKERS) as askers:
        yield from zip(few, askers.map(_object_or_error, few), strict=True)


def _object_or_error(url: str) -> StoredObject | OSError:
    try:
        return stored_object(url)
    except OSError as error:
        return error


def listing(folder: str, *, deep: bool = True) -> Iterator[StoredObject]:
    """Yield the objects in a folder, with `deep` those in its folders too, in no order to be relied on."""
    files = files_of(folder)
    scheme = folder.partition("://")[0]
    _refuse_pages(scheme)
    if scheme.lower() == "s3":
        yield from _pages(files, folder, deep)
        return
    place = folder.rstrip("/")
    found: Mapping[str, Any] = _patiently(
        folder, lambda: files.find(place, detail=True, withdirs=False, maxdepth=None if deep else 1)
    )
    yield from (_object(f"{scheme}://{name}", one) for name, one in found.items())


def _pages(files: Any, folder: str, deep: bool) -> Iterator[StoredObject]:
    """S3's own listing, a thousand objects at a time: `find` would hold all it knows of all of them."""
    bucket, _, path = folder.partition("://")[2].partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{path.rstrip('/')}/" if path.strip("/") else ""}
    asked |= {} if deep else {"Delimiter": "/"}
    while True:
        page = _patiently(folder, lambda: files.call_s3("list_objects_v2", **asked))
        for one in page.get("Contents", ()):
            if not one["Key"].endswith("/"):  # what consoles make for an empty folder
                yield _object(f"s3://{bucket}/{one['Key']}", {**one, "size": one["Size"]})
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def matching(pattern: str) -> Iterator[StoredObject]:
    """Yield the objects that a glob pattern names: `s3://bucket/2026-*/**/*.jpg`."""
    files = files_of(pattern)
    scheme = pattern.partition("://")[0]
    _refuse_pages(scheme)
    found: Mapping[str, Any] = _patiently(pattern, lambda: files.glob(pattern, detail=True))
    for name, one in sorted(found.items()):
        if one.get("type") != "directory":
            yield _object(f"{scheme}://{name}", one)


def _refuse_pages(scheme: str) -> None:
    if scheme.lower().startswith("http"):
        raise OSError(errno.EINVAL, f"a {scheme}:// address is one file: name each, or list them in a @list.txt")


def _object(url: str, found: Mapping[str, Any]) -> StoredObject:
    size = -1 if found.get("size") is None else int(found["size"])
    tag = next((str(found[name]) for name in _TAGS if found.get(name)), "")
    mark = hashlib.blake2b(f"{size} {tag}".encode(), digest_size=8).digest()
    return StoredObject(url, size, int.from_bytes(mark, "big") >> 1 or 1)  # an INTEGER of SQLite, and never 0


# ---- reading


def read(url: str) -> bytes:
    """Return an object's bytes, read whole. Raises OSError."""
    files = files_of(url)
    # s3fs would first ask how large each object is, to read large ones in parts
    how = {"max_concurrency": 1} if url.lower().startswith("s3:") else {}
    return cast(bytes, _patiently(url, lambda: files.cat_file(url, **how)))


def read_part(url: str, start: int, stop: int) -> bytes:
    """Return bytes `start` to `stop` of an object. Raises OSError."""
    files = files_of(url)
    return cast(bytes, _patiently(url, lambda: files.cat_file(url, start=start, end=stop)))


def opened(url: str) -> IO[bytes]:
    """Open an object to look into it here and there, as a video's header needs it. Raises OSError."""
    files = files_of(url)
    return cast(IO[bytes], _patiently(url, lambda: files.open(url, "rb", block_size=1 << 20)))


def download(url: str, target: Path) -> None:
    """Copy an object into a file, which appears whole. Raises OSError."""
    files = files_of(url)
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        _patiently(url, lambda: files.get_file(url, str(partial)))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


# ---- the cache: whole files on this machine, the ones that were not used for longest given up first


def cache_folder() -> Path:
    """Return where copies are kept: `SAM3LABEL_CACHE`, by default `~/.cache/sam3label/objects`."""
    if given := os.environ.get(CACHE):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or (
        Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    )
    return Path(base) / "sam3label" / "objects"


def cache_bytes() -> int:
    """Return how large the cache may get: `SAM3LABEL_CACHE_GB`, by default 50. Raises `InputError`."""
    text = os.environ.get(CACHE_GB, "") or str(_USUAL_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes > 0:
        raise InputError(f"{CACHE_GB} is {text!r}; it is a number of gigabytes over 0")
    return int(gigabytes * 1e9)


def local_copy(url: str) -> Path:
    """Return a copy of an object in the cache, made now if there is none of its present content. Raises OSError."""
    return _kept(stored_object(url))


def _kept(one: StoredObject) -> Path:
    folder = cache_folder() / hashlib.blake2b(f"{one.url}\n{one.version}".encode(), digest_size=16).hexdigest()
    place = folder / posixpath.basename(plain_path(one.url))
    if place.is_file():
        os.utime(folder)
        return place
    _make_room(max(one.size, 0))
    folder.mkdir(parents=True, exist_ok=True)
    download(one.url, place)
    return place


def local_folder(url: str) -> Path:
    """Return a copy of a file, or of a folder with all that is in it, for what reads whole folders. Raises OSError."""
    try:
        return local_copy(url)
    except FileNotFoundError:
        found = sorted(listing(url), key=lambda one: one.url)
    if not found:
        raise _nothing_there()
    text = "\n".join(f"{one.url} {one.version}" for one in found)
    top = cache_folder() / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    place = top / posixpath.basename(url.rstrip("/"))
    if place.is_dir():
        os.utime(top)
        return place
    _make_room(sum(max(one.size, 0) for one in found))
    top.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=top) as partial:
        base = len(url.rstrip("/")) + 1
        for one in found:
            target = Path(partial) / "whole" / one.url[base:]
            target.parent.mkdir(parents=True, exist_ok=True)
            download(one.url, target)
        if not place.is_dir():
            (Path(partial) / "whole").replace(place)
    return place


def _make_room(size: int) -> None:
    """Give up the copies that were not used for longest until `size` bytes more fit."""
    most = cache_bytes()
    if size > most:
        raise OSError(
            errno.EFBIG,
            f"it has {size / 1e9:.1f} GB, and the cache for copies {most / 1e9:g}: set {CACHE_GB} to more",
        )
    folder = cache_folder()
    kept = [(one.stat().st_mtime, one, _bytes_in(one)) for one in folder.iterdir()] if folder.is_dir() else []
    held = sum(bytes_ for _, _, bytes_ in kept)
    for _, one, bytes_ in sorted(kept):
        if held + size <= most:
            return
        shutil.rmtree(one, ignore_errors=True)
        held -= bytes_


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
