"""Work in turns: order, how much is under way, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sam3label.model.in_steps import Steps, finish, in_turns, one_ahead


def work(name: str, steps: int, log: list[str]) -> Steps[str]:
    for number in range(steps):
        log.append(f"{name}{number}")
        yield
    return name


def begun(lengths: Sequence[int], log: list[str]) -> Iterator[Steps[str]]:
    for name, steps in zip("abcdef", lengths, strict=False):
        log.append(name)
        yield work(name, steps, log)


def test_all_under_way_go_a_step_further_when_one_more_is_begun() -> None:
    log: list[str] = []
    out = in_turns(begun([2, 2, 0], log), 2)
    assert next(out) == "a" and log == ["a", "a0", "b", "a1", "b0", "c", "b1"]
    assert list(out) == ["b", "c"]


def test_they_come_out_in_order_and_no_more_than_so_many_are_under_way() -> None:
    for most in range(4):
        log: list[str] = []
        for number, name in enumerate(in_turns(begun([1, 9, 0, 3, 1], log), most)):
            assert name == "abcde"[number]
            assert sum(len(entry) == 1 for entry in log) <= number + 1 + most
    assert finish(work("a", 3, [])) == "a" and list(in_turns([], 2)) == []


def test_each_comes_when_the_one_after_it_is_begun() -> None:
    log: list[int] = []
    ahead = one_ahead(log.append(number) or number for number in range(3))  # type: ignore[func-returns-value]
    assert next(ahead) == 0 and log == [0, 1]
    assert list(ahead) == [1, 2] and list(one_ahead(())) == []
