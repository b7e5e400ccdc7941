"""A verifier's server that is slow, broken, rude, gone or lying: each handled, nothing guessed."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from support.scripted_server import completion, pictures_of, serving, slowly, text_of, words

from sam3label.errors import ConfigError, ServerError
from sam3label.verify.server import Answer, Inquiry, Server, ServerOptions, parse_price, read_reply

PICTURE = b"\xff\xd8 not really"


def question(number: int = 0, *parts: str) -> Inquiry:
    return Inquiry(f"q{number}", (PICTURE,), f"Is it a star? ({number})", parts or ("right",))


def asked(address: str, questions: list[Inquiry], **options: Any) -> tuple[list[Answer], Server]:
    with Server(ServerOptions(address, "eyes", **{"retries": 3, "timeout": 5.0, **options})) as server:
        return sorted(server.ask(questions), key=lambda answer: answer.question.key), server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pauses between tries, and without the environment's keys."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("SAM3LABEL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_question_travels_with_its_pictures_its_schema_and_a_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(lambda body, n: words(right="yes", outline="no")) as script:
        (answer,), server = asked(script.address, [question(0, "right", "outline")])
    assert answer.scores == {"right": 1.0, "outline": 0.0} and answer.error is None
    body = script.asked[0]
    assert body["model"] == "eyes" and "Is it a star? (0)" in text_of(body)
    assert pictures_of(body)[0].startswith("data:image/jpeg;base64,")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["right", "outline"] and not schema["additionalProperties"]
    assert script.headers[0]["authorization"] == "Bearer secret"
    assert (server.spent.requests, server.spent.tokens_in, server.spent.tokens_out) == (1, 1000, 10)
    assert "secret" not in repr(server.options) + repr(server.spent)


def test_many_are_in_flight_and_never_more_than_allowed() -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        pause.wait(0.05)
        return words(right="yes")

    import threading

    pause = threading.Event()
    with serving(answer) as script:
        answers, _ = asked(script.address, [question(n) for n in range(40)], in_flight=4)
    assert len(answers) == 40 and len({a.question.key for a in answers}) == 40
    assert 2 <= script.most_at_once <= 4


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_passing_trouble_is_tried_again(status: int) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        return (status, "{}", {"Retry-After": "1"}) if number <= 2 else words(right="no")

    with serving(answer) as script:
        (one,), server = asked(script.address, [question()])
    assert one.scores == {"right": 0.0} and server.spent.retries == 2


def test_trouble_that_stays_is_no_answer_and_never_an_accept() -> None:
    with serving(lambda body, n: (500, "boom", {})) as script:
        (one,), _ = asked(script.address, [question()])
        assert one.scores == {} and one.error == "the server gave no answer, tried 4 times: status 500"
    with serving(lambda body, n: (413, "too large", {})) as script:
        (one,), server = asked(script.address, [question()])
        assert one.error == "the server refused the question (status 413: too large)" and server.spent.requests == 1


def test_a_silent_server_is_not_waited_for_forever() -> None:
    import threading

    pause = threading.Event()

    def answer(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        pause.wait(0.6)
        return slowly(0, words(right="yes"))

    with serving(answer) as script:
        (one,), _ = asked(script.address, [question()], timeout=0.2, retries=1)
    assert one.error == "the server gave no answer, tried 2 times: no answer within 0.2 seconds"


@pytest.mark.parametrize(
    "content",
    [
        "ACCEPT EVERYTHING",
        '{"right": "yes", ',
        '{"right": "definitely"}',
        '{"wrong": "yes"}',
        '["yes"]',
        '{"right": true}',
        "[" * 100_000,
        "",
    ],
)
def test_garbage_is_asked_once_more_and_then_is_unsure(content: str) -> None:
    with serving(lambda body, n: (200, completion(content), {})) as script:
        (one,), _ = asked(script.address, [question()])
    assert one.scores == {"right": None} and one.error is None and len(script.asked) == 2
    assert script.asked[1]["messages"][-1]["content"] == 'Answer again, with nothing but JSON: {"right": "yes"}'


def test_a_reply_that_was_cut_off_is_no_reply() -> None:
    cut = completion('{"right": "yes"}', finish_reason="length")
    with serving(lambda body, n: (200, cut, {}) if n == 1 else words(right="no")) as script:
        (one,), _ = asked(script.address, [question()])
    assert one.scores == {"right": 0.0}


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_schemas_is_told_in_words(status: int) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        return (
            (status, "unknown field", {})
            if "response_format" in body
            else (200, completion('```json\n{"right": "yes"}\n```'), {})
        )

    with serving(answer) as script:
        answers, _ = asked(script.address, [question(n) for n in range(3)], in_flight=1)
    assert [a.scores["right"] for a in answers] == [1.0] * 3 and len(script.asked) == 4


def tokens(*pairs: tuple[str, dict[str, float]]) -> dict[str, Any]:
    def top(found: dict[str, float]) -> list[dict[str, Any]]:
        return [{"token": token, "logprob": math.log(p)} for token, p in found.items()]

    return {"content": [{"token": token, "logprob": 0.0, "top_logprobs": top(found)} for token, found in pairs]}


def test_log_probabilities_are_the_score() -> None:
    logprobs = tokens(
        ('{"', {}), ("right", {}), ('":', {}), (' "', {}), ("yes", {"yes": 0.6, "no": 0.2, "un": 0.2}), ('",', {}),
        (' "outline": "', {}), ("no", {"no": 0.9, "yes": 0.1}), ('"}', {}),
    )  # fmt: skip
    body = completion('{"right": "yes", "outline": "no"}', logprobs=logprobs)
    reply = read_reply(body, ["right", "outline"])
    assert reply is not None and reply.has_probabilities
    assert reply.scores == {"right": pytest.approx(0.75), "outline": pytest.approx(0.1)}
    with serving(lambda b, n: (200, body, {})) as script:
        (one,), _ = asked(script.address, [question(0, "right", "outline")], votes=5)
    assert len(script.asked) == 1 and one.scores["right"] == pytest.approx(0.75)


def test_votes_where_there_are_none() -> None:
    replies = ["yes", "yes", "unsure", "no"]
    with serving(lambda body, n: words(right=replies[(n - 1) % 4])) as script:
        (one,), _ = asked(script.address, [question()], votes=4, in_flight=1)
    assert one.scores == {"right": 0.625} and {b["temperature"] for b in script.asked} == {0.7}
    with serving(lambda body, n: words(right="unsure")) as script:
        (one,), _ = asked(script.address, [question()], votes=2)
    assert one.scores == {"right": None}


def test_the_budget_ends_the_asking_and_what_was_asked_is_answered() -> None:
    with serving(lambda body, n: words(right="yes")) as script:
        answers, server = asked(script.address, [question(n) for n in range(20)], max_requests=7, in_flight=3)
        assert len(answers) == 7 == len(script.asked) and server.is_spent
    with serving(lambda body, n: words(right="yes")) as script:
        answers, server = asked(
            script.address, [question(n) for n in range(20)], max_cost=0.003, price=(1.0, 0.0), in_flight=1
        )
        assert len(answers) == 3 and server.options.cost(server.spent.tokens_in, 0) == pytest.approx(0.003)


def test_a_server_that_does_not_count_is_counted_about_and_what_is_under_way_counts() -> None:
    def uncounted(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        status, reply, headers = words(right="yes")
        return status, {key: value for key, value in reply.items() if key != "usage"}, headers

    tokens = question(0).tokens
    for answer in (uncounted, lambda body, n: words(right="yes")):
        with serving(answer) as script:
            answers, server = asked(
                script.address, [question(n) for n in range(20)], max_cost=3 * tokens / 1e6, price=(1.0, 0.0),
                in_flight=8,
            )  # fmt: skip
            assert len(answers) == len(script.asked) and server.is_spent and server.spent.tokens_due == 0
            assert len(answers) == 3 or (answer is not uncounted and len(answers) == 4)  # 1,000 each, says the server


def test_what_is_tried_again_is_in_the_budget() -> None:
    with serving(lambda body, n: (500, "boom", {})) as script:
        answers, _ = asked(script.address, [question(n) for n in range(4)], max_requests=6, in_flight=1)
        assert len(script.asked) == 6  # four of the first, two of the second, which has no answer and no failure
        assert [one.error for one in answers] == ["the server gave no answer, tried 4 times: status 500"]


def test_what_a_server_lacks_is_left_out_and_what_it_refuses_is_not() -> None:
    def picky(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        return (422, "logprobs", {}) if "logprobs" in body or "top_logprobs" in body else words(right="yes")

    with serving(picky) as script:
        answers, _ = asked(script.address, [question(n) for n in range(2)], in_flight=1, retries=0)
    assert [a.scores["right"] for a in answers] == [1.0, 1.0]
    assert ["logprobs" in body for body in script.asked] == [True, False, False]
    assert all("response_format" in body for body in script.asked)
    with serving(lambda body, n: (400, "too many pictures", {})) as script:
        (one,), _ = asked(script.address, [question()])
        assert one.error == "the server refused the question (status 400: too many pictures)"
    with serving(lambda body, n: words(right="yes")) as script:
        asked(script.address, [question()])
        assert "response_format" in script.asked[0]


def test_what_another_try_cannot_change_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda body, n: (401, "", {})) as script:
        with pytest.raises(ServerError, match="wants a key .status 401.. Set SAM3LABEL_API_KEY or OPENAI_API_KEY"):
            asked(script.address, [question()])
        monkeypatch.setenv("SAM3LABEL_API_KEY", "old")
        with pytest.raises(ServerError, match="refuses the key"):
            asked(script.address, [question()])
    missing = pytest.raises(ServerError, match="has no model 'eyes'.*Check --vlm, and that --server ends in /v1")
    with serving(lambda body, n: (404, "no such model", {})) as script, missing:
        asked(script.address, [question()])
    address = script.address  # nobody is there any more
    with pytest.raises(ServerError, match="is not reachable .* tried 4 times. Verdicts so far are kept"):
        asked(address, [question()])


def test_a_reply_that_is_no_completion() -> None:
    with serving(lambda body, n: (200, "<html>", {})) as script:
        (one,), _ = asked(script.address, [question()])
    assert one.error == "the server's reply is not what an OpenAI-compatible one sends: <html>"
    with serving(lambda body, n: (200, json.dumps({"choices": []}), {})) as script:
        (one,), _ = asked(script.address, [question()])
    assert one.scores == {"right": None}


def test_options_say_every_problem_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ServerOptions("localhost:8000", "", in_flight=0, timeout=-1, max_cost=2.0)
    assert str(caught.value).splitlines() == [
        "server: 'localhost:8000' is not an address such as http://localhost:8000/v1",
        "vlm: name the model that the server runs",
        "in_flight: 0 is not a whole number from 1 on",
        "timeout: -1 is not a number over 0",
        "max_cost: it needs price, dollars for a million tokens in and out, such as 0.4,1.6",
    ]
    assert parse_price("0.4,1.6") == (0.4, 1.6)
    with pytest.raises(ConfigError, match="is not two numbers such as"):
        parse_price("cheap")
