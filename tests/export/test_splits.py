"""Splits depend on an image's own path and the seed, on nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam3label.errors import ConfigError
from sam3label.export.splits import Splits, parse_splits

IDS = [f"scene{s:03}/cam{c}/{i:04}.jpg" for s in range(50) for c in range(2) for i in range(20)]


def shares(splits: Splits, ids: list[str]) -> dict[str, float]:
    found = [splits.of(i) for i in ids]
    return {name: found.count(name) / len(ids) for name in splits.names}


def test_shares_are_met_on_average() -> None:
    got = shares(parse_splits("train=0.8,val=0.1,test=0.1"), IDS)
    assert got["train"] == pytest.approx(0.8, abs=0.03) and got["val"] == pytest.approx(0.1, abs=0.03)


@given(st.sets(st.text(min_size=1, max_size=20), min_size=1, max_size=30), st.integers(0, 5))
def test_adding_images_moves_none(ids: set[str], seed: int) -> None:
    splits = parse_splits("train=0.7,val=0.3", seed)
    alone = {i: splits.of(i) for i in ids}
    assert alone == {i: parse_splits("train=0.7,val=0.3", seed).of(i) for i in sorted(ids)}
    assert set(alone.values()) <= {"train", "val"}


def test_growing_a_split_moves_images_into_it_only() -> None:
    small, large = parse_splits("train=0.6,val=0.4"), parse_splits("train=0.8,val=0.2")
    assert all(large.of(i) == "train" for i in IDS if small.of(i) == "train")


def test_the_seed_matters_and_one_split_takes_all() -> None:
    one, two = parse_splits("train=0.5,val=0.5", 1), parse_splits("train=0.5,val=0.5", 2)
    assert any(one.of(i) != two.of(i) for i in IDS)
    assert {parse_splits(None).of(i) for i in IDS} == {"train"} == {parse_splits("train=1").of(i) for i in IDS}


def test_a_folder_stays_together() -> None:
    splits = parse_splits("train=0.5,val=0.5", group="folder")
    for folder in {i.rpartition("/")[0] for i in IDS}:
        assert len({splits.of(i) for i in IDS if i.startswith(folder + "/")}) == 1
    assert {splits.of(i) for i in IDS} == {"train", "val"}


def test_what_a_pattern_finds_stays_together() -> None:
    splits = parse_splits("train=0.5,val=0.5", group_regex=r"^(scene\d+)/")
    assert splits.group("scene007/cam1/0001.jpg") == "scene007"
    for scene in {i.partition("/")[0] for i in IDS}:
        assert len({splits.of(i) for i in IDS if i.startswith(scene + "/")}) == 1
    assert parse_splits(None, group_regex=r"cam\d").group("scene007/cam1/0001.jpg") == "cam1"
    assert splits.group("other.jpg") == "other.jpg"


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ({"text": "train=0.8"}, ["the shares must add up to 1, got 0.8"]),
        ({"text": "train=0.8,train=0.2"}, ["train is given twice"]),
        (
            {"text": "train=x,valid=-1"},
            ["share of train must be a number over 0 and up to 1, got 'x'", "'valid' is not"],
        ),
        ({"text": "tain=1"}, ["'tain' is not a split; allowed are train, val, test. Did you mean train?"]),
        ({"text": None, "group": "scene"}, ["--group is 'scene'; the only value is folder"]),
        ({"text": None, "group": "folder", "group_regex": "a"}, ["exclude each other"]),
        ({"text": None, "group_regex": "("}, ["'(' is not a regular expression: "]),
    ],
)
def test_mistakes_are_all_named(arguments: dict[str, str], texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_splits(**arguments)  # type: ignore[arg-type]
    assert all(text in str(caught.value) for text in texts)
