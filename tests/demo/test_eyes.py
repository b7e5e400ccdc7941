"""The demo's verifier sees, behind a real server's protocol; and the demo that shows what it is worth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.demo import eyes
from sam3label.demo.shapes import Scene, make_scene
from sam3label.verify import pictures
from sam3label.verify.judge import ABOUT_CLASS, ABOUT_LABEL
from sam3label.verify.server import Inquiry, Server, ServerOptions

SCENES = range(42_000_000, 42_000_012)  # of no lesson


@pytest.fixture(scope="module")
def observer() -> eyes.Observer:
    return eyes.Observer()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed) for seed in SCENES]


def marked(mask: npt.NDArray[np.bool_]) -> Label:
    rle = masks.encode(mask)
    return Label("x", 0, 0.9, 0.9, masks.box_xywh(rle), masks.area(rle), rle, "p")


def seen(data: bytes) -> eyes.Pixels:
    return np.array(Image.open(io.BytesIO(data)))


def test_it_tells_right_from_wrong_and_good_outlines_from_shifted_ones(
    observer: eyes.Observer, scenes: list[Scene]
) -> None:
    right, wrong, shifted = [], [], []
    for scene in scenes:
        for k, thing in enumerate(scene.things, start=1):
            mask = scene.mask(k)
            pair = [seen(p) for p in pictures.enlarged(scene.image, marked(mask))]
            right.append(min(observer.judge_label([thing.name], *pair)) >= 0.5)
            other = "star" if thing.shape != "star" else "circle"
            wrong.append(observer.judge_label([other], *pair)[0] >= 0.5)
            away = marked(np.roll(mask, int(mask.sum() ** 0.5 * 0.6), axis=1))
            shifted.append(
                observer.judge_label([thing.name], *map(seen, pictures.enlarged(scene.image, away)))[1] >= 0.5
            )
    assert len(right) >= 20
    assert np.mean(right) >= 0.85 and np.mean(wrong) <= 0.1 and np.mean(shifted) <= 0.2


def test_it_tells_whether_there_is_any_and_whether_all_are_masked(observer: eyes.Observer, scenes: list[Scene]) -> None:
    there, absent, complete, missing = [], [], [], []
    for scene in scenes:
        plain = seen(pictures.whole(scene.image))
        for shape in ("circle", "star", "ring"):
            own = [marked(scene.mask(k)) for k, thing in enumerate(scene.things, 1) if thing.shape == shape]
            any_, all_ = observer.judge_class([shape], plain, seen(pictures.numbered(scene.image, own)))
            (there if own else absent).append(any_ >= 0.5)
            complete.append(all_ >= 0.5)
            if own:
                fewer = seen(pictures.numbered(scene.image, own[1:]))
                missing.append(observer.judge_class([shape], plain, fewer)[1] < 0.5)
    assert np.mean(there) >= 0.8 and np.mean(absent) <= 0.2
    assert np.mean(complete) >= 0.8 and np.mean(missing) >= 0.7


def test_it_speaks_the_protocol_of_a_real_server(observer: eyes.Observer, scenes: list[Scene]) -> None:
    scene = next(scene for scene in scenes if scene.things)
    thing, label = scene.things[0], marked(scene.mask(1))
    words = {"name": thing.name, "synonyms": f" (also called {thing.shape})"}
    shown = (pictures.numbered(scene.image, [label]), *pictures.enlarged(scene.image, label))
    about = Inquiry("label", shown, ABOUT_LABEL.format(**words), ("right", "outline"))
    whole = Inquiry(
        "class",
        (pictures.whole(scene.image), pictures.numbered(scene.image, [label])),
        ABOUT_CLASS.format(**words, count=1),
        ("any", "all"),
    )
    other = Inquiry("other", (b"\xff\xd8",), "What is the weather like?", ("sunny",))
    broken = Inquiry("broken", (b"\xff\xd8", b"\xff\xd8"), ABOUT_CLASS.format(**words, count=1), ("any", "all"))
    with eyes.serving(observer) as address, Server(ServerOptions(address, "demo", retries=0)) as server:
        answers = {answer.question.key: answer for answer in server.ask([about, whole, other, broken])}
    score = answers["label"].scores["right"]
    assert score is not None and 0.5 < score < 1  # a probability, not a word
    assert set(answers["class"].scores) == {"any", "all"} and answers["class"].error is None
    assert "answers the questions of `sam3label verify`" in str(answers["other"].error)
    assert "a picture that cannot be decoded" in str(answers["broken"].error)


def test_the_demo_shows_what_verdicts_are_worth(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["demo", "--verify", "--number", "12", "-o", str(tmp_path / "demo")], terminal_width=200
    )
    assert done.exit_code == 0, done.output
    assert "Is the label good? Against" in done.output and "On the 6 photos that nobody reviewed" in done.output
    again = CliRunner().invoke(app, ["verify", str(tmp_path / "demo/run"), "--server", "demo", "--all"])
    assert again.exit_code == 0 and "0 questions to ask" in again.output, again.output
    both = CliRunner().invoke(app, ["demo", "--verify", "--videos", "-o", str(tmp_path / "no")])
    assert both.exit_code == 2 and "choose one of --videos and --verify" in both.output
