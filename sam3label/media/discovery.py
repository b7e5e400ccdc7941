"""The files to label.

Discovery gives each file an id: its POSIX path relative to the source it was found under.
"""

# Paths are strings here: a Path object for each of a million files costs more than finding them.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH119, PTH120, PTH122, PTH206, PTH207

from __future__ import annotations

import errno
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

from sam3label.core.files import close_match
from sam3label.core.problems import Problem, first_of
from sam3label.core.records import MediaItem
from sam3label.errors import InputError, os_reason
from sam3label.media import storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm")

FEWEST_FRAMES = 8  # numbered images in a folder for it to be taken as a video
_FRAME = re.compile(r"(frame[-_ ]?)?(\d+)(\.(?:jpe?g|png|webp|bmp|tiff?))", re.ASCII | re.IGNORECASE)
_NAMED = re.compile(r"([^/\\=@*?\[\]]+)=(.+)", re.DOTALL)  # name=FOLDER
_SHOWN = 20  # problems of one kind listed in a message


@dataclass(frozen=True, slots=True)
class Found:
    """What discovery came to: the items sorted by id, and how many files of each other suffix were left out."""

    items: list[MediaItem]
    skipped: Counter[str]
    links_out: tuple[str, ...] = ()  # links that lead out of their source, followed or not

    @property
    def videos_skipped(self) -> int:
        return sum(self.skipped[suffix] for suffix in VIDEO_SUFFIXES)


def discover(sources: Sequence[str | Path], videos: bool = False) -> list[MediaItem]:
    """Return the items of `find_media`, for callers that do not ask what was left out."""
    return find_media(sources, videos).items


def find_media(
    sources: Sequence[str | Path], videos: bool = False, numbered_folders: bool = True, links: bool = True
) -> Found:
    """Return every image (and video, if asked) under the sources: files, folders, glob patterns or `@list.txt`.

    Any of them, and any line of a list, may be an address in storage (`s3://bucket/photos`).
    `name=FOLDER` puts `name/` before the ids of what is in the folder. With `videos`, folders of numbered frames are
    videos too, unless `numbered_folders` says that they are photos. Links that lead out of a source are followed,
    unless `links` is False.

    Raises InputError naming every source that is missing, unreadable or in conflict with another, and when there is
    nothing to label.
    """
    scan = _Scan(IMAGE_SUFFIXES + VIDEO_SUFFIXES if videos else IMAGE_SUFFIXES, links)
    for source in sources:
        scan.add_source(os.fspath(source))
    scan.refuse_double_paths()
    if scan.problems:
        raise InputError("\n".join(first_of(scan.problems, _SHOWN)))
    if not scan.paths:
        raise InputError(_nothing_found(sources, scan))
    if videos and numbered_folders:
        _join_frames(scan)
    items = [_item(key, scan.paths[key], scan.versions.get(scan.paths[key], 0)) for key in sorted(scan.paths)]
    return Found(items, scan.skipped, tuple(sorted(scan.links_out)))


def _join_frames(scan: _Scan) -> None:
    """Folders of numbered frames become one video each, in place of their files."""
    inside: dict[str, list[str]] = {}
    for key, path in scan.paths.items():
        inside.setdefault(os.path.dirname(path), []).append(key)
    for folder, keys in inside.items():
        if folder in scan.walked and _are_frames([os.path.basename(key) for key in keys]):
            if storage.is_remote(folder):
                raise InputError(
                    f"{folder} holds the numbered frames of a video, and these are followed on a disk only: copy the "
                    "folder here, or leave out --video track to label them as photos"
                )
            for key in keys:
                del scan.paths[key]
            scan.paths[os.path.dirname(keys[0]) or os.path.basename(folder)] = folder


def _are_frames(names: Sequence[str]) -> bool:
    """Whether files are the frames of one video: `00001.jpg` or `frame_00001.jpg`, numbers of equal width in equal
    steps, all of one kind. (Cameras number photos too, but with a prefix of their own.)"""
    found = [_FRAME.fullmatch(name) for name in names]
    if len(names) < FEWEST_FRAMES or not all(found):
        return False
    parts = [match.groups() for match in found if match]
    numbers = sorted(int(number) for _, number, _ in parts)
    steps = {b - a for a, b in pairwise(numbers)}
    return len({(prefix, len(number), suffix) for prefix, number, suffix in parts}) == 1 and len(steps) == 1


def numbered(folder: Path) -> list[Path]:
    """Return the frames of a folder that is a video, in order. Names of one width sort by their number."""
    return sorted(path for path in folder.iterdir() if _FRAME.fullmatch(path.name))


def _item(key: str, path: str, version: int) -> MediaItem:
    return MediaItem(key, path, "video" if _suffix(key) not in IMAGE_SUFFIXES else "image", _root(key, path), version)


def _root(key: str, path: str) -> str:
    """Return the folder an id is relative to: the path without the parts that both end in."""
    parts, names = path.split(os.sep), key.split("/")
    same = 0
    while same < min(len(parts), len(names)) and parts[-1 - same] == names[-1 - same]:
        same += 1
    return sys.intern(os.sep.join(parts[: len(parts) - same]) or os.sep)  # one string for a million photos


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class _Scan:
    """One pass over the sources. Strings and `os.scandir`: no Path and no stat per file, so that millions are fine."""

    def __init__(self, wanted: Sequence[str], links: bool) -> None:
        self.wanted, self.links = frozenset(wanted), links
        self.prefix = ""  # of the ids of the current source
        self.root = ""  # of the current source, links resolved
        self.links_out: set[str] = set()
        self.paths: dict[str, str] = {}  # id -> absolute path, or address in storage
        self.versions: dict[str, int] = {}  # of objects in storage, by address
        self.skipped: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.entered: set[tuple[int, int]] = set()  # folders of the current source, by device and inode
        self.walked: set[str] = set()  # folders whose files were all looked at

    def add_source(self, source: str) -> None:
        self.entered.clear()
        self.prefix = ""
        named = _NAMED.fullmatch(source)
        if named and not os.path.lexists(source):
            self.prefix, source = f"{named[1]}/", named[2]
        if storage.is_remote(source):
            self.add_address(source)
            return
        path = os.path.abspath(source)  # not resolve(): following links would change ids
        if os.path.lexists(path):
            self.add_path(path, os.path.dirname(path) if not os.path.isdir(path) else path, source)
        elif source.startswith("@"):
            self.add_list(source[1:])
        elif glob.has_magic(source):
            self.add_glob(source)
        else:
            self.problems.append(Problem(source, f"no such file or folder{close_match(path)}"))

    def add_path(self, path: str, root: str, shown: str) -> None:
        """Add a file or folder the user named: unlike a file met in a folder, a suffix we cannot read is an error."""
        if os.path.isdir(path):
            self.root = os.path.realpath(path)
            self.walk(path, _key(path, root))
        elif _suffix(path) in self.wanted:
            self.add_file(path, _key(path, root))
        else:
            self.problems.append(Problem(shown, _not_wanted(_suffix(path), self.wanted)))

    def add_glob(self, pattern: str) -> None:
        root = os.path.abspath(_fixed_part(pattern))
        self.root = os.path.realpath(root)
        matches = sorted(glob.iglob(pattern, recursive=True), key=lambda match: (match.count(os.sep), match))
        if "**" in pattern:  # it follows links in circles: of several ways to a file, the shortest counts
            matches = list({os.path.realpath(match): match for match in reversed(matches)}.values())
        if not matches:
            self.problems.append(Problem(pattern, "the pattern matches nothing"))
        for match in matches:
            path = os.path.abspath(match)
            if os.path.isdir(path):
                self.walk(path, _key(path, root))
            else:
                self.meet_file(path, _key(path, root))

    def add_address(self, url: str, root: str | None = None, shown: str | None = None) -> None:
        """Add what lies at an address in storage: an object, a folder, or what a pattern there matches."""
        before = len(self.paths), self.skipped.total()
        try:
            if glob.has_magic(url) and not url.lower().startswith("http"):
                self.meet_objects(storage.matching(url), _fixed_part(url))
            elif _suffix(storage.plain_path(url)) in self.wanted:
                self.add_object(storage.stored_object(url), root or storage.parent(url))
            else:
                self.meet_objects(storage.listing(url), root or url.rstrip("/"))
        except OSError as error:
            self.problems.append(Problem(shown or url, os_reason(error)))
            return
        if before == (len(self.paths), self.skipped.total()):
            suffix = _suffix(storage.plain_path(url))
            why = _not_wanted(suffix, self.wanted) if suffix else "there is nothing at this address"
            self.problems.append(Problem(shown or url, why))

    def meet_objects(self, found: Iterable[storage.StoredObject], root: str) -> None:
        """Add what a listing has; as on a disk, names that begin with a dot are passed over."""
        for one in found:
            key = _key_of(one.url, root)
            if not key.startswith(".") and "/." not in key:
                self.versions[one.url] = one.version
                self.walked.add(os.path.dirname(one.url))
                self.meet_file(one.url, key)

    def add_object(self, one: storage.StoredObject, root: str) -> None:
        self.versions[one.url] = one.version
        self.add_file(one.url, _key_of(one.url, root))

    def add_list(self, name: str) -> None:
        """Add the lines of a list, of which relative ones are relative to it.

        Lines outside its folder keep their absolute path as id, so that an id never depends on the other lines.
        """
        far = storage.is_remote(name)
        folder = storage.parent(name) if far else os.path.dirname(os.path.abspath(name))
        objects: dict[str, str] = {}  # address -> how its line is called
        for number, line in self.read_list(name):
            shown = f"{name}, line {number}: {line}"
            if storage.is_remote(line) or (far and not line.startswith("/")):
                objects.setdefault(line if storage.is_remote(line) else storage.joined(folder, line), shown)
                continue
            path = os.path.normpath(os.path.join(folder, line))
            root = folder if path.startswith(os.path.join(folder, "")) else os.path.abspath(os.sep)
            if os.path.lexists(path):
                self.add_path(path, root, shown)
            else:
                self.problems.append(
                    Problem(f"{name}, line {number}", f"no such file or folder: {line}{close_match(path)}")
                )
        self.add_listed_objects(objects, f"{folder}/")

    def add_listed_objects(self, objects: Mapping[str, str], folder: str) -> None:
        """Add the addresses of a list, all looked up together."""
        root = {url: folder if url.startswith(folder) else url[: url.index("://") + 3] for url in objects}
        single = [url for url in objects if _suffix(storage.plain_path(url)) in self.wanted and not glob.has_magic(url)]
        for url in objects.keys() - set(single):
            self.add_address(url, root[url], objects[url])
        for url, one in storage.stored_objects(single):
            if isinstance(one, OSError):
                self.problems.append(Problem(objects[url], os_reason(one)))
            else:
                self.add_object(one, root[url])

    def read_list(self, name: str) -> list[tuple[int, str]]:
        try:
            data = storage.read(name) if storage.is_remote(name) else Path(name).read_bytes()
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.problems.append(Problem(f"@{name}", "not a text file in UTF-8; a list has one path per line"))
            return []
        except OSError as error:
            near = "" if storage.is_remote(name) else close_match(os.path.abspath(name))
            self.problems.append(Problem(f"@{name}", f"{os_reason(error)}{near}"))
            return []
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
        return [(number, line) for number, line in lines if line and not line.startswith("#")]

    def walk(self, folder: str, prefix: str) -> None:
        """Enter each real folder once, by its own path where it has one under the root, so links cannot loop
        and never change the ids of what is really there."""
        real, linked = [(folder, f"{prefix}/" if prefix else "")], list[tuple[str, str]]()
        while real or linked:
            if not real:
                linked.sort(reverse=True)
                real.append(linked.pop())
            folder, prefix = real.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self.entered:
                    continue
                self.entered.add((status.st_dev, status.st_ino))
                self.walked.add(folder)
                with os.scandir(folder) as entries:
                    self.walk_entries(entries, prefix, real, linked)
            except OSError as error:
                self.problems.append(Problem(folder, f"the folder cannot be read: {os_reason(error)}"))

    def walk_entries(
        self,
        entries: Iterable[os.DirEntry[str]],
        prefix: str,
        real: list[tuple[str, str]],
        linked: list[tuple[str, str]],
    ) -> None:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and self.leads_out(entry.path) and not self.links:
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else real).append((entry.path, f"{prefix}{entry.name}/"))
            else:
                self.meet_file(entry.path, prefix + entry.name)

    def leads_out(self, path: str) -> bool:
        """Return whether a link points outside the source it was met in; remembers it if so."""
        real = os.path.realpath(path)
        out = real != self.root and not real.startswith(os.path.join(self.root, ""))
        if out:
            self.links_out.add(path)
        return out

    def meet_file(self, path: str, key: str) -> None:
        """Add a file met in a folder or by a pattern. Broken links count: they fail later, by name, not silently."""
        suffix = _suffix(path)
        if suffix in self.wanted:
            self.add_file(path, key)
        else:
            self.skipped[suffix] += 1

    def add_file(self, path: str, key: str) -> None:
        key = self.prefix + key
        try:
            key.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode(errors="backslashreplace")
            why = "the name is not UTF-8 text, which no label format can hold: rename it"
            self.problems.append(Problem(shown, why))
            return
        other = self.paths.setdefault(key, path)
        if other != path:
            common = _shared(other, path)
            why = (
                f"it would be called '{key}' like {other}: pass the folder they share, {common}, instead, "
                f"or give one source a name: more={os.path.dirname(path)}"
            )
            self.problems.append(Problem(path, why))

    def refuse_double_paths(self) -> None:
        """Refuse one file under two ids: it would be labelled twice, and could land in two splits of a dataset."""
        if len(set(self.paths.values())) == len(self.paths):
            return
        first: dict[str, str] = {}
        for key, path in self.paths.items():
            if first.setdefault(path, key) != key:
                self.problems.append(Problem(path, "two sources reach it, which overlap: leave the inner one out"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _key(path: str, root: str) -> str:
    """`path` relative to `root` with forward slashes; empty for the root itself."""
    return "" if path == root else os.path.relpath(path, root).replace(os.sep, "/")


def _key_of(url: str, root: str) -> str:
    """Return an address relative to a folder, as an id has it: without scheme, query and percent signs."""
    return storage.plain_path(url).removeprefix(storage.plain_path(f"{root.rstrip('/')}/"))


def _shared(one: str, other: str) -> str:
    """Return the folder that two paths or addresses share."""
    if storage.is_remote(one) or storage.is_remote(other):
        parts = zip(one.split("/"), other.split("/"), strict=False)
        return "/".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], parts))
    return os.path.commonpath([one, other])


def _fixed_part(pattern: str) -> str:
    """Return the folder of a glob pattern before its first wildcard: `a/b` of `a/b/*/c*.jpg`."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder


def _not_wanted(suffix: str, wanted: Iterable[str]) -> str:
    if suffix in VIDEO_SUFFIXES:
        return "this is a video, and only images are labelled here"
    return f"cannot label a '{suffix}' file; allowed: {' '.join(sorted(wanted))}"


def _nothing_found(sources: Sequence[str | Path], scan: _Scan) -> str:
    if not sources:
        return "no photos given: name at least one file or folder"
    looked = f"no images found in {', '.join(map(str, sources))}: looked for {' '.join(sorted(scan.wanted))}"
    other = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in scan.skipped.most_common(5))
    return f"{looked} (found only: {other})" if other else f"{looked}, and no other files are there"
