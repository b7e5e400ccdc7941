"""An agent with SAM 3 as its tool: the whole loop, and everything a model may reply instead."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import candidate, rectangle
from support.scripted_server import Headers, completion, serving
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.core.records import Candidate
from sam3label.demo.shapes import write_scenes
from sam3label.errors import ConfigError
from sam3label.run.reader import open_run
from sam3label.verify import agent
from sam3label.verify.server import Server, ServerOptions

PHOTO = np.full((64, 96, 3), 90, np.uint8)
SMALL = (192, 256)  # photos that are drawn and shown quickly
Reply = tuple[int, Any, Headers]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("SAM3LABEL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def says(content: str) -> Reply:
    return 200, completion(content), {}


def calls(name: str, **arguments: Any) -> Reply:
    """A tool call of the protocol."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    return 200, completion("", message=message), {}


def persons(count: int) -> Callable[[str], Sequence[Candidate]]:
    def segment(phrase: str) -> list[Candidate]:
        if len(phrase) > 40:
            raise ConfigError(f"phrase {phrase!r} is too long for the model.")
        spots = [
            rectangle(1 + 3 * (n % 25), 1 + 3 * (n // 25), 2, 2) for n in range(count if phrase == "person" else 0)
        ]
        return [candidate("person", 0.9 - n / 1000, spot, query=n) for n, spot in enumerate(spots)]

    return segment


def conversation(
    replies: Sequence[Reply], masks: int = 3, turns: int = 8
) -> tuple[agent.Outcome, list[dict[str, Any]]]:
    """Play these replies, the last of them for ever, and return what came of it and what was sent."""
    played = serving(lambda body, n: replies[min(n, len(replies)) - 1])
    with played as script, Server(ServerOptions(script.address, "eyes", retries=0)) as server:
        return agent.converse("person without a helmet", PHOTO, persons(masks), server, turns), script.asked


def pictures_in(body: dict[str, Any]) -> list[int]:
    """Pictures of each message."""
    contents = [message["content"] for message in body["messages"]]
    return [sum(p["type"] == "image_url" for p in c) if isinstance(c, list) else 0 for c in contents]


def told(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"][-1]["text"])


def test_the_whole_loop_by_tool_calls_json_and_plain_text() -> None:
    outcome, asked = conversation(
        [
            calls("segment_phrase", phrase="person"),
            says('I look closer.\n```json\n{"tool": "examine_masks", "numbers": [2, "3"]}\n```'),
            says("select_masks(numbers=[1, 3])"),
        ]
    )
    assert outcome.undecided is None
    assert [one.score for one in outcome.selected] == [0.9, pytest.approx(0.898)]
    assert [name["function"]["name"] for name in asked[0]["tools"]] == [
        "segment_phrase", "examine_masks", "select_masks", "report_none",
    ]  # fmt: skip
    assert "person without a helmet" in told(asked[0]) and pictures_in(asked[0]) == [0, 1]
    assert '"person": 3 masks, numbered on the picture. Scores: 1: 0.90,' in told(asked[1])
    assert pictures_in(asked[1]) == [0, 1, 0, 1]
    assert told(asked[2]) == "Mask 2, 3, each without and with its mask."
    assert pictures_in(asked[2]) == [0, 1, 0, 0, 0, 4]  # of what was shown before only the photo
    assert asked[2]["messages"][2] == {"role": "assistant", "content": '{"tool": "segment_phrase", "phrase": "person"}'}
    assert [turn.told for turn in outcome.turns][-1] == "selected 1, 3" and len(outcome.turns) == 3


def test_nothing_found_and_nothing_reported() -> None:
    outcome, asked = conversation([calls("segment_phrase", phrase="hard hat"), says('{"name": "report_none"}')])
    assert outcome.undecided is None and outcome.selected == ()
    assert '"hard hat": nothing found. Try other words' in told(asked[1])


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (calls("delete_photo"), "There is no tool 'delete_photo'. The tools are segment_phrase, examine_masks,"),
        (calls("select_masks", numbers=[1]), "There are no masks yet: segment_phrase first."),
        (calls("segment_phrase"), "segment_phrase takes a phrase:"),
        (calls("segment_phrase", phrase="a" * 50), "is too long for the model. Use a short noun phrase."),
        (says("ACCEPT EVERYTHING"), "No tool call could be read. Reply with one JSON object"),
        (says('{"tool": "select_masks", '), "No tool call could be read."),
        (says('{"tool": ["select_masks"]}'), "No tool call could be read."),
        (says("[" * 50_000), "No tool call could be read."),
        (says(""), "No tool call could be read."),
    ],
)
def test_a_reply_that_is_no_call_is_told_so(reply: Reply, answer: str) -> None:
    outcome, asked = conversation([reply, says('{"tool": "report_none"}')])
    assert answer in told(asked[1]) and outcome.undecided is None and outcome.selected == ()


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [
        ([4], "There is no mask 4: they are 1 to 3."),
        ([0, 1], "There is no mask 0: they are 1 to 3."),
        ("all", 'Say which masks: {"numbers": [1, 3]}. If it is none of them, report_none.'),
        ([], "Say which masks:"),
        ([[1]], "Say which masks:"),
    ],
)
def test_masks_that_are_not_there_are_not_selected(numbers: Any, answer: str) -> None:
    first = calls("segment_phrase", phrase="person")
    outcome, asked = conversation([first, calls("select_masks", numbers=numbers), calls("select_masks", numbers=[2])])
    assert answer in told(asked[2]) and len(outcome.selected) == 1


def test_one_that_goes_in_circles_ends_without_a_decision() -> None:
    outcome, asked = conversation([calls("segment_phrase", phrase="person")], turns=5)
    assert outcome.undecided == "no decision in 5 replies" and outcome.selected == () and len(asked) == 5
    assert "was done before, and nothing new comes of it" in told(asked[2])
    assert told(asked[4]).endswith("This is your last reply: select_masks or report_none.")


def test_more_than_a_hundred_masks() -> None:
    chosen = [calls("select_masks", numbers=[number]) for number in (101, 100)]
    outcome, asked = conversation([calls("segment_phrase", phrase="person"), *chosen], masks=150)
    assert '"person": 100 masks, the best of 150, numbered' in told(asked[1])
    assert "There is no mask 101: they are 1 to 100." in told(asked[2]) and len(outcome.selected) == 1


def test_of_several_calls_in_one_reply_the_first_is_done() -> None:
    both = says('{"tool": "segment_phrase", "phrase": "person"} {"tool": "select_masks", "numbers": [1]}')
    outcome, asked = conversation([both, calls("select_masks", numbers=[2])])
    assert "Only the first of 2 calls was done" in told(asked[1])
    assert [one.score for one in outcome.selected] == [pytest.approx(0.899)]


def test_a_server_without_tools_is_asked_in_words_and_one_that_fails_is_no_decision() -> None:
    def answer(body: dict[str, Any], number: int) -> Reply:
        return (400, "tools are not supported", {}) if "tools" in body else says('{"tool": "report_none"}')

    with serving(answer) as script, Server(ServerOptions(script.address, "eyes", retries=0)) as server:
        for _ in range(2):
            assert agent.converse("x", PHOTO, persons(1), server).undecided is None
        assert ["tools" in body for body in script.asked] == [True, False, False]  # refused once
    outcome, _ = conversation([(500, "boom", {})])
    assert outcome.undecided == "the server gave no answer, tried 1 time: status 500"
    outcome, _ = conversation([(200, {"choices": []}, {})])
    assert outcome.undecided == "the server's reply has no message"


# ---- the job, with the demo checkpoint


def ask(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ask", *map(str, arguments)], terminal_width=200)


def one_circle(body: dict[str, Any], number: int) -> Reply:
    """Look for circles, select one, report none where there are none."""
    text = told(body)
    if "Asked for" in text:
        return says('{"tool": "segment_phrase", "phrase": "circle"}')
    return says('{"tool": "select_masks", "numbers": [1]}' if "mask" in text else '{"tool": "report_none"}')


LIST = """\
names: [disc, star, lone disc, odd one]
concepts:
  disc: {prompts: circle}
  lone disc: {ask: a circle with no star beside it}
  odd one: {ask: the odd one out}
"""


def test_photos_are_asked_about_at_once_and_each_is_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam3label.model.detector import Detector

    encoded: Counter[str] = Counter()
    encode = Detector.encode_frame
    monkeypatch.setattr(
        Detector, "encode_frame", lambda self, frame: encoded.update([frame.item.id]) or encode(self, frame)
    )
    write_scenes(tmp_path / "photos", 4, seed=3, size_hw=SMALL)
    (tmp_path / "list.yaml").write_text(LIST)
    out = tmp_path / "run"
    together = threading.Barrier(2)

    def answer(body: dict[str, Any], number: int) -> Reply:
        if number <= 2:
            together.wait(60)  # the first two are under way at once
        return one_circle(body, number)

    with serving(answer) as script:
        options = ("-o", out, "--server", script.address, "--vlm", "eyes", "--model", "demo", "--in-flight", 4)
        labelled = CliRunner().invoke(
            app, ["run", str(tmp_path / "photos"), "-c", str(tmp_path / "list.yaml"), "-o", str(out), "--model", "demo"]
        )
        assert labelled.exit_code == 0, labelled.output
        done = ask(tmp_path / "photos", "-c", tmp_path / "list.yaml", *options)
        assert done.exit_code == 0, done.output
        assert f"Photos are sent to {script.address}, and nowhere else." in done.output
        assert encoded == {f"scene_000{n}.jpg": 1 for n in range(4)}  # of two questions with two turns each
        assert len(script.asked) == 4 * 2 * 2 and 2 <= script.most_at_once <= 4

        again = ask(tmp_path / "photos", "-c", tmp_path / "list.yaml", *options)
        assert again.exit_code == 0 and "0 photos asked about, 4 before" in again.output
        assert len(script.asked) == 16

        more = ask(tmp_path / "photos", "a lone ring", *options)  # a class beside the run's own
        assert more.exit_code == 0, more.output
        assert len(script.asked) == 16 + 4 * 2  # what was decided is not asked again
    with open_run(out) as run:
        assert run.concepts.names == ("disc", "star", "lone disc", "odd one", "a lone ring")
        images = list(run.images())
        found = {image.item.id: Counter(label.class_name for label in image.labels) for image in images}
        assert len(found) == 4
        for image in images:
            circles = [label for label in image.labels if label.class_name == "disc"]
            chosen = [label for label in image.labels if label.class_name == "lone disc"]
            assert len(chosen) <= 1 and all(label.source == "agent" for label in chosen)
            if circles and chosen:
                assert chosen[0].rle in {label.rle for label in circles}
        assert sum(one["lone disc"] for one in found.values()) >= 1
        said = list(run.transcripts("scene_0000.jpg"))
        assert {one.class_name for one in said} == {"lone disc", "odd one", "a lone ring"}
        assert said[0].turns[0][0] == '{"tool": "segment_phrase", "phrase": "circle"}'

    known = CliRunner().invoke(
        app, ["run", str(tmp_path / "photos"), "-c", str(tmp_path / "list.yaml"), "-o", str(out), "--model", "demo"]
    )
    assert known.exit_code == 0, known.output
    with open_run(out) as run:  # a session of `run` leaves the agent's answers where they are
        assert sum(label.class_name == "lone disc" for image in run.images() for label in image.labels) >= 1


def test_without_a_decision_there_is_no_label_and_the_same_command_asks_again(tmp_path: Path) -> None:
    write_scenes(tmp_path / "photos", 2, seed=3, size_hw=SMALL)

    def half(body: dict[str, Any], number: int) -> Reply:
        return says("hmm") if number <= 3 else one_circle(body, number)

    with serving(half) as script:
        options = ("-o", tmp_path / "run", "--server", script.address, "--vlm", "eyes", "--model", "demo")
        done = ask(tmp_path / "photos", "the odd one", *options, "--in-flight", 1, "--turns", 3)
        assert done.exit_code == 3
        assert "no decision  scene_0000.jpg: the odd one: no decision in 3 replies" in done.output
        with open_run(tmp_path / "run") as run:
            assert [image.item.id for image in run.images()] == ["scene_0001.jpg"]
            assert [one.outcome for one in run.transcripts("scene_0000.jpg")] == ["no decision in 3 replies"]
        again = ask(tmp_path / "photos", "the odd one", *options, "--turns", 3)
        assert again.exit_code == 0 and "1 photo asked about, 1 before" in again.output, again.output
    with open_run(tmp_path / "run") as run:
        assert len(list(run.images())) == 2


def test_a_budget_ends_it_between_photos_the_same_command_goes_on_and_so_does_run(tmp_path: Path) -> None:
    write_scenes(tmp_path / "photos", 3, seed=3, size_hw=SMALL)
    wanted = tmp_path / "list.yaml"
    wanted.write_text("names: [disc, odd one]\nconcepts: {disc: {prompts: circle}, odd one: {ask: the odd one}}\n")
    common = (tmp_path / "photos", "-c", wanted, "-o", tmp_path / "run", "--model", "demo")
    with serving(one_circle) as script:
        options = (*common, "--server", script.address, "--vlm", "eyes")
        spent = ask(*options, "--in-flight", 1, "--max-requests", 3)
        assert spent.exit_code == 0 and "1 photo asked about" in spent.output and "the budget is spent" in spent.output
        rest = ask(*options)
        assert rest.exit_code == 0 and "2 photos asked about, 1 before" in rest.output
        assert len(script.asked) == 3 + 4  # the photo in the middle was begun anew
    labelled = CliRunner().invoke(app, ["run", *map(str, common)])
    assert labelled.exit_code == 0, labelled.output
    assert "odd one: not found by a phrase, but by sam3label ask with the same list." in labelled.output
    with open_run(tmp_path / "run") as run:
        found = Counter(label.class_name for image in run.images() for label in image.labels)
        assert len(list(run.images())) == 3 and found["disc"] >= found["odd one"] >= 1


def test_lists_that_cannot_be_asked(tmp_path: Path) -> None:
    write_scenes(tmp_path / "photos", 1, seed=3, size_hw=SMALL)
    (tmp_path / "both.yaml").write_text("names: [a]\nconcepts: {a: {ask: x, prompts: [y]}}\n")
    options = ("-o", tmp_path / "run", "--server", "http://127.0.0.1:9/v1", "--vlm", "eyes", "--model", "demo")
    both = ask(tmp_path / "photos", "-c", tmp_path / "both.yaml", *options)
    assert both.exit_code == 1 and "concepts.a.prompts: a class with ask: has none; make two classes" in both.output
    (tmp_path / "none.yaml").write_text("names: [a]\n")
    none = ask(tmp_path / "photos", "-c", tmp_path / "none.yaml", *options)
    assert none.exit_code == 1 and "no class asks the agent: give one of the list ask:" in none.output
    (tmp_path / "only.yaml").write_text("names: [a]\nconcepts: {a: {ask: x}}\n")
    run = CliRunner().invoke(
        app, ["run", str(tmp_path / "photos"), "-c", str(tmp_path / "only.yaml"), "--model", "demo"]
    )
    assert run.exit_code == 1 and "sam3label ask PHOTOS -c LIST -o RUN" in run.output
    assert ask(tmp_path / "photos", *options).exit_code == 2
