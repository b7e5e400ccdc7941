"""Report and review queue ask one judge: the same images, in the same order, for the same reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.reviewing import CONCEPTS, candidate, disc, make_run, photo

from sam3label.core.records import UnitResult
from sam3label.review.fiftyone.push import push
from sam3label.review.reasons import KINDS
from sam3label.run.reader import open_run
from sam3label.show.report import CASES_PER_KIND, collect

SIZE = (96, 128)


def doubtful(folder: Path, number: int) -> UnitResult:
    """A photo whose few candidates have random scores, places and overlaps; some are equal to another photo's."""
    rng = np.random.default_rng(number // 2)
    item_id = f"{number:03d}.png"
    found = []
    for query in range(int(rng.integers(1, 5))):
        phrase = str(rng.choice(list(CONCEPTS.phrases)))
        x, y, r = (float(v) for v in rng.uniform((30, 30, 8), (100, 70, 24)))
        score = float(np.float32(rng.uniform(0.35, 0.7)))
        found.append(candidate(item_id, query, phrase, score, disc(SIZE, x, y, r)))
    return photo(folder, item_id, SIZE, found)


def test_report_and_queue_name_the_same_images_in_the_same_order(fo: Any, tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", [doubtful(tmp_path, number) for number in range(40)])
    with open_run(folder) as run:
        push(run, name, audit=0)
        cases = collect(run, "x")["cases"]
    dataset = fo.load_dataset(name)
    shown = {kind: [c["item"] for c in cases if c["kind"] == kind] for kind in KINDS}
    queued = {kind: dataset.load_saved_view(f"review: {kind}").values("item_id") for kind in KINDS}
    assert shown == {kind: ids[:CASES_PER_KIND] for kind, ids in queued.items()}
    assert sum(len(ids) > 1 for ids in queued.values()) >= 4, "several kinds were compared"
    assert any(len(ids) > CASES_PER_KIND for ids in queued.values())
    said = dict(zip(*dataset.values(["item_id", "reasons"]), strict=True))
    assert all(case["reason"] in said[case["item"]] for case in cases)
