"""Which part of a dataset an image belongs to: a pure function of its path and a seed.

An image never moves when others are added or removed, because nothing but its own key decides: the key is hashed to
a point in [0, 1) and the shares cut that interval. The price is that shares are met on average, not exactly; the
report of an export says what each split really holds. Frames of one video share an item id, hence a split.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from sam3label.core.checks import refuse
from sam3label.core.problems import Problem
from sam3label.core.text import count

SPLIT_NAMES = ("train", "val", "test")
EVERYTHING = (("train", 1.0),)
FAR_OFF = 0.05  # of all images, more or less than was asked
SEEDS_TRIED = 50
_FORM = "write it as train=0.8,val=0.1,test=0.1 or 0.8,0.1,0.1"


@dataclass(frozen=True, slots=True)
class Splits:
    """Shares in order, and what keeps images together: nothing, their folder, or what a pattern finds in their path.

    `pattern` groups by its first group, or by the whole match if it has none; a path it does not match stands alone.
    Raises `ConfigError` with every problem.
    """

    shares: tuple[tuple[str, float], ...] = EVERYTHING
    seed: int = 0
    by_folder: bool = False
    pattern: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        refuse(_problems(self.shares))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares)

    def of(self, item_id: str) -> str:
        """Return the split of an image by its path relative to the source root."""
        if len(self.shares) == 1:
            return self.shares[0][0]
        return self._part(self.group(item_id), self.seed)

    def _part(self, group: str, seed: int) -> str:
        point, bound = _unit_interval(f"{seed}\0{group}"), 0.0
        for name, share in self.shares:
            bound += share
            if point < bound:
                return name
        return self.shares[-1][0]

    def far_off(self, images: Mapping[str, int], groups: Mapping[str, int]) -> str | None:
        """Return a sentence where the parts are far from what was asked, with a seed that is nearer, or None.

        `images` counts them by split, `groups` by what stays together, as far as there are few groups.
        """
        total, kept = sum(images.values()), len(groups)
        if not total or self._distance(images) <= FAR_OFF + min(FAR_OFF, 0.5 / kept):
            return None
        has = ", ".join(f"{name} {images[name] / total:.0%} for {share:.0%}" for name, share in self.shares)
        few = count(kept, "photo") if kept == total else count(kept, "group of photos", "groups of photos")
        return (
            f"The shares are met roughly ({has}): a hash of its name decides where a photo goes, so that it never "
            f"moves when others come, and {few} cannot do better than by chance. {self._nearer_seed(groups, images)}"
        )

    def _distance(self, images: Mapping[str, int]) -> float:
        total = sum(images.values())
        return max(abs(images[name] / total - share) for name, share in self.shares)

    def _nearer_seed(self, groups: Mapping[str, int], images: Mapping[str, int]) -> str:
        if sum(groups.values()) < sum(images.values()):
            return "Another --seed splits otherwise."
        found = {}
        for seed in range(self.seed + 1, self.seed + 1 + SEEDS_TRIED):
            held = Counter[str]()
            for group, size in groups.items():
                held[self._part(group, seed)] += size
            found[seed] = self._distance(held)
        best = min(found, key=lambda seed: (found[seed], seed))
        is_nearer = found[best] < self._distance(images)
        return f"Exporting with --seed {best} comes nearer." if is_nearer else "No --seed comes nearer."

    def group(self, item_id: str) -> str:
        """Return the key of an image's group: images of one group go to one split."""
        if self.by_folder:
            return PurePosixPath(item_id).parent.as_posix()
        found = self.pattern.search(item_id) if self.pattern else None
        if found is None:
            return item_id
        return found.group(1) or "" if found.re.groups else found.group(0)


def parse_splits(text: str | None, seed: int = 0, group: str | None = None, group_regex: str | None = None) -> Splits:
    """Read `train=0.8,val=0.1,test=0.1`, or `0.8,0.1,0.1` in that order; nothing given puts everything into train.

    Raises `ConfigError` with all problems.
    """
    problems = list[Problem]()
    shares = _parse_shares(text, problems) if text else EVERYTHING
    problems += _problems(shares) if not problems else ()
    if group not in (None, "folder"):
        problems.append(Problem("--group", f"{group!r} is not folder, which is the only value"))
    if group and group_regex:
        problems.append(Problem("--group", "goes without --group-regex: give one"))
    pattern = _compiled(group_regex, problems) if group_regex else None
    refuse(problems)
    return Splits(shares, seed, group == "folder", pattern)


def _parse_shares(text: str, problems: list[Problem]) -> tuple[tuple[str, float], ...]:
    """Return pairs as given, in the order train, val, test where the names are known."""
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts) and 1 < len(parts) <= len(SPLIT_NAMES):
        parts = [f"{name}={part}" for name, part in zip(SPLIT_NAMES, parts, strict=False)]
    pairs = [tuple(half.strip() for half in part.partition("=")[::2]) for part in parts]
    shares = []
    for name, value in pairs:
        try:
            shares.append((name, float(value)))
        except ValueError:
            problems.append(Problem("--split", f"{_FORM}, got {text!r}"))
            break
    return tuple(sorted(shares, key=lambda pair: (*SPLIT_NAMES, pair[0]).index(pair[0])))


def _problems(shares: tuple[tuple[str, float], ...]) -> Iterator[Problem]:
    names = [name for name, _ in shares]
    for name in dict.fromkeys(names):
        if name not in SPLIT_NAMES:
            near = get_close_matches(name, SPLIT_NAMES, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield Problem("--split", f"{name!r} is not a split; allowed are {', '.join(SPLIT_NAMES)}.{hint}")
        elif names.count(name) > 1:
            yield Problem("--split", f"{name} is given twice")
    if wrong := [f"{share:g} for {name}" for name, share in shares if not 0 < share <= 1]:
        yield Problem("--split", f"a share is a number over 0 and up to 1, got {', '.join(wrong)} ({_FORM})")
    elif abs((total := sum(share for _, share in shares)) - 1) > 1e-6:
        yield Problem("--split", f"the shares must add up to 1, got {total:g} ({_FORM})")


def _compiled(text: str, problems: list[Problem]) -> re.Pattern[str] | None:
    try:
        return re.compile(text)
    except re.error as error:
        problems.append(Problem("--group-regex", f"{text!r} is not a regular expression: {error}"))
        return None


def _unit_interval(key: str) -> float:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
