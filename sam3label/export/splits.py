"""Which part of a dataset an image belongs to: a pure function of its path and a seed.

An image never moves when others are added or removed, because nothing but its own key decides: the key is hashed to
a point in [0, 1) and the shares cut that interval. The price is that shares are met on average, not exactly; the
report of an export says what each split really holds. Frames of one video share an item id, hence a split.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from sam3label.errors import ConfigError

SPLIT_NAMES = ("train", "val", "test")
EVERYTHING = (("train", 1.0),)


@dataclass(frozen=True, slots=True)
class Splits:
    """Shares in order, and what keeps images together: nothing, their folder, or what a pattern finds in their path.

    `pattern` groups by its first group, or by the whole match if it has none; a path it does not match stands alone.
    """

    shares: tuple[tuple[str, float], ...] = EVERYTHING
    seed: int = 0
    by_folder: bool = False
    pattern: re.Pattern[str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares)

    def of(self, item_id: str) -> str:
        """The split of an image by its path relative to the source root."""
        if len(self.shares) == 1:
            return self.shares[0][0]
        point, bound = _unit_interval(f"{self.seed}\0{self.group(item_id)}"), 0.0
        for name, share in self.shares:
            bound += share
            if point < bound:
                return name
        return self.shares[-1][0]

    def group(self, item_id: str) -> str:
        """Images of one group go to one split."""
        if self.by_folder:
            return PurePosixPath(item_id).parent.as_posix()
        found = self.pattern.search(item_id) if self.pattern else None
        if found is None:
            return item_id
        return found.group(1) or "" if found.re.groups else found.group(0)


def parse_splits(text: str | None, seed: int = 0, group: str | None = None, group_regex: str | None = None) -> Splits:
    """Read `train=0.8,val=0.1,test=0.1`; nothing given puts everything into train.

    Raises `ConfigError` with all problems.
    """
    problems: list[str] = []
    shares = _parse_shares(text, problems) if text else EVERYTHING
    if group not in (None, "folder"):
        problems.append(f"--group is {group!r}; the only value is folder")
    if group and group_regex:
        problems.append("--group and --group-regex exclude each other; give one")
    pattern = _compiled(group_regex, problems) if group_regex else None
    if problems:
        raise ConfigError("\n".join(problems))
    return Splits(shares, seed, group == "folder", pattern)


def _parse_shares(text: str, problems: list[str]) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (p.strip() for p in part.partition("="))
        if name not in SPLIT_NAMES:
            near = get_close_matches(name, SPLIT_NAMES, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"--split: {name!r} is not a split; allowed are {', '.join(SPLIT_NAMES)}.{hint}")
        elif name in shares:
            problems.append(f"--split: {name} is given twice")
        else:
            shares[name] = _share(name, value, problems)
    total = sum(shares.values())
    if not problems and abs(total - 1) > 1e-6:
        problems.append(f"--split: the shares must add up to 1, got {total:g} (for example train=0.8,val=0.1,test=0.1)")
    return tuple((name, shares[name]) for name in SPLIT_NAMES if name in shares)


def _share(name: str, value: str, problems: list[str]) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        problems.append(f"--split: the share of {name} must be a number over 0 and up to 1, got {value!r}")
    return share


def _compiled(text: str, problems: list[str]) -> re.Pattern[str] | None:
    try:
        return re.compile(text)
    except re.error as error:
        problems.append(f"--group-regex: {text!r} is not a regular expression: {error}")
        return None


def _unit_interval(key: str) -> float:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
