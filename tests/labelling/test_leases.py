"""Who has what, when workers die: every photo comes to an end, batches stay as they were cut, and poison is found."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from sam3label.core.records import MediaItem
from sam3label.labelling.photos import PhotoBatch, batches_of
from sam3label.labelling.workers import leases as module
from sam3label.labelling.workers.leases import MOST_DEATHS, Lease, Leases

KEYS = frozenset({"cat"})
PHOTOS = [MediaItem(f"{n:03d}.jpg", f"/photos/{n:03d}.jpg") for n in range(40)]
VIDEOS = [MediaItem(f"{n}.mp4", f"/photos/{n}.mp4", "video") for n in range(3)]


def cut(size: int = 4) -> list[PhotoBatch]:
    return batches_of(PHOTOS, {item.id: KEYS for item in PHOTOS}, size)


def photos_of(lease: Lease) -> set[str]:
    """The photos that are decoded for a lease."""
    if lease.tried is not None:
        return {lease.tried.id}
    return {item.id for batch in lease.batches for item in batch.items if item.id not in lease.known}


def play(
    work: Leases, poison: set[str], seed: int, chance_of_death: float = 0.0
) -> tuple[Counter[str], list[str], int]:
    """Let three workers do the work; those that meet poison die, others by chance. Returns what came of it.

    Batches that were labelled (by their photos), photos that failed, and deaths at poison.
    """
    chance, held = random.Random(seed), {worker: list[Lease]() for worker in range(3)}
    done, failed, deaths = Counter[str](), list[str](), 0
    for _ in range(10_000):
        if work.is_over:
            return done, failed, deaths
        worker = chance.randrange(3)
        own = held[worker]
        alone = any(lease.is_alone for lease in own)
        if len(own) < 2 and not alone and (lease := work.give(idle=not own)) is not None:
            assert not (lease.is_alone and own)
            own.append(lease)
            continue
        if not own:
            continue
        met = any(photos_of(lease) & poison for lease in own)
        if met or chance.random() < chance_of_death:
            deaths += met
            given_up = work.died(own, "signal 9")
            assert not given_up
            own.clear()
            continue
        lease = own.pop(0)
        if lease.tried is None:
            failed += [id_ for batch in lease.batches for item in batch.items if (id_ := item.id) in lease.known]
            done.update(" ".join(item.id for item in batch.items) for batch in lease.batches)
        work.done(lease)
    raise AssertionError("the work never ends")


@pytest.mark.parametrize("seed", range(5))
def test_every_batch_is_labelled_once_as_it_was_cut(seed: int) -> None:
    done, failed, _ = play(Leases(cut(), (), 16), set(), seed)
    assert done == Counter(" ".join(item.id for item in batch.items) for batch in cut())
    assert failed == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1, 4, 16])
def test_poison_is_found_after_three_deaths_and_nothing_else_fails(seed: int, size: int) -> None:
    done, failed, deaths = play(Leases(cut(size), (), 16), {"017.jpg"}, seed)
    assert failed == ["017.jpg"]
    assert deaths == MOST_DEATHS
    assert done == Counter(" ".join(item.id for item in batch.items) for batch in cut(size))


@pytest.mark.parametrize("seed", range(20))
def test_two_poisons_in_one_batch_are_both_found(seed: int) -> None:
    done, failed, deaths = play(Leases(cut(), (), 16), {"016.jpg", "018.jpg"}, seed)
    assert sorted(failed) == ["016.jpg", "018.jpg"]
    assert deaths <= 2 * MOST_DEATHS
    assert done == Counter(" ".join(item.id for item in batch.items) for batch in cut())


@pytest.mark.parametrize("seed", range(20))
def test_deaths_by_chance_lose_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APART", 99)
    monkeypatch.setattr(module, "MOST_DEATHS", 99)
    done, failed, _ = play(Leases(cut(), (), 16), set(), seed, chance_of_death=0.2)
    assert failed == []
    assert done == Counter(" ".join(item.id for item in batch.items) for batch in cut())


def test_a_batch_that_kills_though_its_photos_pass_is_computed_one_by_one() -> None:
    work = Leases(cut()[:1], ())
    kills = labelled = 0
    while not work.is_over:
        lease = work.give(idle=True)
        assert lease is not None
        if lease.tried is None and lease.photos > 1:
            work.died([lease], "out of memory")
            kills += 1
            continue
        labelled += lease.photos if lease.tried is None else 0
        work.done(lease)
    assert (kills, labelled) == (5, 4)


def test_a_video_is_given_up_after_three_deaths_without_a_unit_between() -> None:
    work = Leases((), VIDEOS[:1])
    for _ in range(MOST_DEATHS - 1):
        lease = work.give(idle=True)
        assert lease is not None and work.died([lease], "signal 9") == []
    lease = work.give(idle=True)
    assert lease is not None
    work.progressed(lease)
    assert work.died([lease], "signal 9") == []
    for _ in range(MOST_DEATHS - 1):
        lease = work.give(idle=True)
        assert lease is not None
        given_up = work.died([lease], "signal 9")
    assert given_up == [(VIDEOS[0], "the worker that labelled it died 3 times (signal 9)")]
    assert work.is_over


def test_what_must_be_alone_is_given_only_to_who_has_nothing() -> None:
    work = Leases(cut(), VIDEOS, 16)
    first = work.give(idle=True)
    assert first is not None and first.video == VIDEOS[0]
    assert work.give(idle=False) is None  # videos wait: a worker that has something runs empty first
    for video in VIDEOS[1:]:
        lease = work.give(idle=True)
        assert lease is not None and lease.video == video
    lease = work.give(idle=False)
    assert lease is not None and lease.photos == 16


def test_what_nobody_is_to_blame_for_is_leased_again_as_it_is() -> None:
    work = Leases(cut(), (), 16)
    lease = work.give(idle=True)
    assert lease is not None
    work.back([lease])
    assert work.give(idle=False) is lease
