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


def test_bare_shares_are_train_val_and_test_and_the_order_of_names_does_not_matter() -> None:
    wanted = parse_splits("train=0.8,val=0.15,test=0.05")
    assert parse_splits("0.8, 0.15, 0.05") == wanted == parse_splits("test=0.05,train=0.8,val=0.15")
    assert wanted.names == ("train", "val", "test")
    assert parse_splits("0.9,0.1").shares == (("train", 0.9), ("val", 0.1))


def test_splits_check_themselves() -> None:
    with pytest.raises(ConfigError, match=r"'dev' is not a split; allowed are train, val, test.\n.*over 0 and up to 1"):
        Splits((("dev", 1.5),))


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ({"text": "train=0.8"}, ["the shares must add up to 1, got 0.8"]),
        ({"text": "train=0.8,train=0.2"}, ["train is given twice"]),
        (
            {"text": "train=x,valid=-1"},
            ["--split: write it as train=0.8,val=0.1,test=0.1 or 0.8,0.1,0.1, got 'train=x,valid=-1'"],
        ),
        ({"text": "train=2,valid=-1"}, ["'valid' is not a split", "over 0 and up to 1, got 2 for train, -1 for valid"]),
        ({"text": "0.8"}, ["--split: write it as train=0.8,val=0.1,test=0.1 or 0.8,0.1,0.1, got '0.8'"]),
        ({"text": "80,10,10"}, ["over 0 and up to 1, got 80 for train, 10 for val, 10 for test"]),
        ({"text": "0.5,0.2,0.2,0.1"}, ["--split: write it as train=0.8,val=0.1,test=0.1 or 0.8,0.1,0.1, got '0.5,"]),
        ({"text": "tain=1"}, ["'tain' is not a split; allowed are train, val, test. Did you mean train?"]),
        ({"text": None, "group": "scene"}, ["--group: 'scene' is not folder, which is the only value"]),
        ({"text": None, "group": "folder", "group_regex": "a"}, ["--group: goes without --group-regex"]),
        ({"text": None, "group_regex": "("}, ["'(' is not a regular expression: "]),
    ],
)
def test_mistakes_are_all_named(arguments: dict[str, str], texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_splits(**arguments)  # type: ignore[arg-type]
    assert all(text in str(caught.value) for text in texts)
