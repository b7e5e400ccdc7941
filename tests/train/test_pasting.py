"""Objects of one photo in another: pixels, outlines and answers go together, or nothing does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from sam3label.core import masks
from sam3label.core.records import MediaItem
from sam3label.train.pasting import pasted, rarity
from sam3label.train.taught import PhraseAnswer, TaughtPhoto, TruthObject, around

SIZE = (60, 80)
GRAY, RED, BLUE = 90, 200, 30


def known(mask: masks.Mask) -> TruthObject:
    return TruthObject(around(mask), masks.encode(mask))


def region(top: int, left: int, high: int, wide: int) -> masks.Mask:
    mask = np.zeros(SIZE, np.bool_)
    mask[top : top + high, left : left + wide] = True
    return mask


def photo(name: str, *objects: TruthObject, questions: tuple[PhraseAnswer, ...]) -> TaughtPhoto:
    return TaughtPhoto(MediaItem(name, name), SIZE, objects, questions)


def pixels(value: int, mask: masks.Mask | None = None, inside: int = 0) -> npt.NDArray[np.uint8]:
    made = np.full((*SIZE, 3), value, np.uint8)
    if mask is not None:
        made[mask] = inside
    return made


def paste(
    sample: TaughtPhoto,
    image: npt.NDArray[np.uint8],
    other: TaughtPhoto,
    its: npt.NDArray[np.uint8],
    rng: np.random.Generator,
) -> tuple[TaughtPhoto, npt.NDArray[np.uint8]]:
    return pasted(sample, image, other, its, rarity([other])[0], rng)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_pasted_is_known_where_it_lies(seed: int) -> None:
    own, car, wheel = region(5, 5, 12, 12), region(20, 30, 14, 24), region(28, 32, 5, 5)
    here = photo("here", known(own), questions=(PhraseAnswer("car", (0,)), PhraseAnswer("wheel"), PhraseAnswer("dog")))
    there = photo(
        "there", known(car), known(wheel),
        questions=(PhraseAnswer("car", (0,)), PhraseAnswer("wheel", (1,)), PhraseAnswer("dog")),
    )  # fmt: skip
    made, image = paste(here, pixels(GRAY), there, pixels(0, car, RED), np.random.default_rng(seed))
    assert made.item == here.item and len(made.objects) > 1
    shown = [masks.decode(one.rle) for one in made.objects if one.rle is not None]
    answers = {q.phrase: q.answer for q in made.questions}
    assert answers["dog"] == ()
    assert 0 in answers["car"]
    assert set(answers["car"]) | set(answers["wheel"]) == set(range(len(made.objects)))
    red = image[..., 0] == RED
    assert (image[~red] == GRAY).all()  # nothing but what was cut out
    assert (red == np.any([shown[n] for n in answers["car"][1:] + answers["wheel"]], axis=0)).all()
    assert not (shown[0] & red).any() and shown[0].sum() >= 0.6 * own.sum()  # not hidden, or little
    for number in answers["wheel"]:  # a part goes along with the whole, if it is not what was chosen
        assert shown[number].sum() < 0.2 * car.sum() * 1.4**2
    assert all(one.box_xyxy == around(mask) for one, mask in zip(made.objects, shown, strict=True))


def test_what_lies_half_in_the_region_is_not_torn_apart() -> None:
    rider, bicycle = region(10, 10, 20, 10), region(20, 8, 20, 20)
    asked = (PhraseAnswer("rider", (0,)), PhraseAnswer("bicycle", (1,)))
    here = photo("here", questions=(PhraseAnswer("rider"), PhraseAnswer("bicycle")))
    there = photo("there", known(rider), known(bicycle), questions=asked)
    for seed in range(5):
        made, image = paste(here, pixels(GRAY), there, pixels(RED), np.random.default_rng(seed))
        assert made.objects == () and (image == GRAY).all()


def test_nothing_is_pasted_where_less_is_known() -> None:
    car = known(region(20, 30, 14, 24))
    asked = (PhraseAnswer("car", (0,)), PhraseAnswer("dog"))
    here, there = photo("here", questions=asked[1:]), photo("there", car, questions=asked)
    rng = np.random.default_rng(0)
    assert len(paste(here, pixels(GRAY), there, pixels(RED), rng)[0].objects) == 1
    box_only = replace(there, objects=(replace(car, rle=None),))
    never_asked = replace(there, questions=asked[:1])  # there may be dogs
    for other in (box_only, never_asked):
        made, image = paste(here, pixels(GRAY), other, pixels(RED), rng)
        assert made is here and (image == GRAY).all()
    boxed = replace(here, objects=(replace(car, rle=None),))
    assert paste(boxed, pixels(GRAY), there, pixels(RED), rng)[0] is boxed


@pytest.mark.parametrize(("phrase", "turned"), [("left glove", False), ("glove", True)])
def test_what_is_left_or_right_is_not_mirrored(phrase: str, turned: bool) -> None:
    glove = region(20, 30, 16, 24)
    image = pixels(0, glove, BLUE)
    image[region(20, 30, 16, 6)] = RED  # its left side
    here = photo("here", questions=(PhraseAnswer(phrase),))
    there = photo("there", known(glove), questions=(PhraseAnswer(phrase, (0,)),))
    sides = set()
    for seed in range(12):
        _, made = paste(here, pixels(GRAY), there, image, np.random.default_rng(seed))
        red, blue = (np.flatnonzero((made[..., 0] == value).any(0)) for value in (RED, BLUE))
        sides.add(bool(red.mean() < blue.mean()))
    assert sides == ({True, False} if turned else {True})


def test_it_is_the_same_again() -> None:
    there = photo("there", known(region(20, 30, 14, 24)), questions=(PhraseAnswer("car", (0,)),))
    here = photo("here", questions=(PhraseAnswer("car"),))
    one, two = (paste(here, pixels(GRAY), there, pixels(RED), np.random.default_rng(3)) for _ in range(2))
    assert one[0] == two[0] and (one[1] == two[1]).all()


def test_every_kind_is_pasted_as_often_as_others() -> None:
    thing = known(region(5, 5, 12, 12))
    many = photo("many", *[thing] * 4, questions=(PhraseAnswer("car", (0, 1, 2, 3)), PhraseAnswer("red car", (3,))))
    few = photo("few", thing, thing, questions=(PhraseAnswer("car", (1,)), PhraseAnswer("bus", (0,))))
    first, second, third = rarity([many, few, photo("none", questions=(PhraseAnswer("car"),))])
    assert first.tolist() == [0.25, 0.25, 0.25, 1.0] and second.tolist() == [1.0, 0.25] and not len(third)
