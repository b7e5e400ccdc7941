"""HOTA and the SA-Co figures of tracks: TrackEval's numbers, sequences to count by hand, video truth and runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle
from typer.testing import CliRunner

from sam3label.annotations.youtube_vis import read_video_truth, video_name
from sam3label.cli import app
from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, MediaItem, Rle, UnitResult
from sam3label.errors import InputError
from sam3label.quality.evaluate_tracks import evaluate_track_results, evaluate_tracked_run
from sam3label.quality.metrics import hota
from sam3label.run.store import Store

HEIGHT, WIDTH = SIZE_HW


def frame(truth: list[int], found: list[int], iou: Any) -> hota.ComparedFrame:
    shape = len(truth), len(found)
    return hota.ComparedFrame(np.array(truth, int), np.array(found, int), np.array(iou, float).reshape(shape))


def random_sequence(seed: int) -> tuple[list[hota.ComparedFrame], int, int]:
    rng = np.random.default_rng(seed)
    truth, found, length = int(rng.integers(0, 6)), int(rng.integers(0, 6)), int(rng.integers(1, 15))
    frames = []
    for _ in range(length):
        t = np.array(sorted(rng.permutation(truth)[: rng.integers(0, truth + 1)]), int)
        d = np.array(sorted(rng.permutation(found)[: rng.integers(0, found + 1)]), int)
        iou = np.round(rng.random((len(t), len(d))), 2)
        iou[rng.random(iou.shape) < 0.4] = 0
        frames.append(hota.ComparedFrame(t, d, iou))
    return frames, truth, found


def test_three_hundred_sequences_give_the_numbers_of_trackeval() -> None:
    """The expected numbers were computed with TrackEval 1.3.0: HOTA.eval_sequence, then HOTA.combine_sequences."""
    together = hota.summarize(hota.add(hota.count(*random_sequence(seed)) for seed in range(300)))
    assert together == pytest.approx(
        {
            "HOTA": 0.16943259606828615,
            "DetA": 0.13602351983700586,
            "AssA": 0.21980543374000258,
            "LocA": 0.7797945202846229,
        },
        abs=1e-12,
    )


def test_perfect_tracks() -> None:
    frames = [frame([0, 1], [1, 0], [[0, 1], [1, 0]]) for _ in range(5)]
    assert hota.summarize(hota.count(frames, 2, 2)) == {"HOTA": 1.0, "DetA": 1.0, "AssA": 1.0, "LocA": 1.0}


def test_an_identity_switch_half_way_costs_association_alone() -> None:
    """One object for 4 frames, found as track 0 twice and as track 1 twice: each hit has 2 / (4 + 2 - 2) of it."""
    frames = [frame([0], [0], 1.0)] * 2 + [frame([0], [1], 1.0)] * 2
    figures = hota.summarize(hota.count(frames, 1, 2))
    assert figures["DetA"] == 1.0
    assert figures["AssA"] == pytest.approx(0.5)
    assert figures["HOTA"] == pytest.approx(0.5**0.5)


def test_overlap_of_exactly_alpha_is_a_hit() -> None:
    """IoU 0.3 is a hit for the 6 thresholds up to 0.3 of 19, although 6 * 0.05 is larger than 0.3 in floats."""
    counts = hota.count([frame([0], [0], 0.3)], 1, 1)
    assert counts.tp.tolist() == 6 * [1] + 13 * [0]
    assert hota.summarize(counts)["HOTA"] == pytest.approx(6 / 19)


def test_nothing_found_and_nothing_there() -> None:
    missed = hota.count([frame([0], [], [])] * 3, 1, 0)
    alarm = hota.count([frame([], [0], [])] * 2, 0, 1)
    assert (missed.fn[0], missed.tp[0], alarm.fp[0]) == (3, 0, 2)
    assert hota.summarize(hota.add([missed, alarm]))["HOTA"] == 0


# ---- truth and predictions of videos


def rle_json(rle: Rle | None) -> Any:
    return None if rle is None else {"size": list(rle.size_hw), "counts": rle.counts.decode()}


def track(video: int, category: int, rles: list[Rle | None], **fields: Any) -> dict[str, Any]:
    return {"video_id": video, "category_id": category, "segmentations": [rle_json(r) for r in rles], **fields}


def truth_json(tracks: list[dict[str, Any]], videos: tuple[str, ...] = ("a", "b"), length: int = 4) -> dict[str, Any]:
    return {
        "videos": [
            {"id": i, "file_names": [f"{name}/{k:05d}.jpg" for k in range(length)], "height": HEIGHT, "width": WIDTH}
            for i, name in enumerate(videos, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": i, **t} for i, t in enumerate(tracks, start=1)],
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def moving(x: int = 0, w: int = 20, n: int = 4) -> list[Rle | None]:
    return [rectangle(x + 2 * k, 5, w, 20) for k in range(n)]


def test_tracks_overlap_by_summed_intersections_over_summed_unions(tmp_path: Path) -> None:
    """Right in one frame and half in another: (400 + 200) / (400 + 400) = 0.75, where the mean would be 0.75 too, and
    absent in a third: 600 / 1200 is exactly a half."""
    full, half = rectangle(0, 5, 20, 20), rectangle(0, 5, 10, 20)
    truth = write(tmp_path / "gt.json", truth_json([track(1, 1, [full, full, full, None])]))
    found = write(tmp_path / "p.json", [track(1, 1, [full, half, None, None], score=0.9)])
    figures = evaluate_track_results(truth, found).to_json()["segm"]
    assert figures["F1@0.5"] > 0.999
    assert figures["F1@0.75"] == 0
    assert [figures[f"IL_{n}"] for n in ("TP", "FP", "TN", "FN")] == [1, 0, 3, 0]
    assert figures["AP50"] == pytest.approx(1.0)
    assert figures["AP"] == pytest.approx(0.1)
    assert figures["by_video"]["a"]["IL_TP"] == 1
    assert figures["by_video"]["b"]["IL_TN"] == 2
    # HOTA by hand: hits in frame 1 (IoU 1) for all 19 alphas, in frame 2 (0.5) for 10; a track of 3 frames, found in 2
    hits = np.array([2] * 10 + [1] * 9)
    expected = np.sqrt(hits / (hits + (2 - hits) + (3 - hits)) * hits / (3 + 2 - hits)).mean()
    assert figures["HOTA"] == pytest.approx(expected)
    assert figures["by_class"]["cat"]["HOTA"] == pytest.approx(expected)


def test_scores_of_exactly_a_half_are_answers_but_not_followed(tmp_path: Path) -> None:
    truth = write(tmp_path / "gt.json", truth_json([track(1, 1, moving())]))
    figures = evaluate_track_results(truth, write(tmp_path / "p.json", [track(1, 1, moving(), score=0.5)])).to_json()
    assert figures["segm"]["IL_TP"] == 1
    assert figures["segm"]["HOTA"] == 0


def test_average_precision_of_tracks_is_that_of_boxes_when_the_video_is_one_frame(tmp_path: Path) -> None:
    """In a single frame a track is an object: every figure must be that of the image evaluation."""
    from sam3label.quality.evaluate import evaluate_results

    rng = np.random.default_rng(3)
    video_truth, video_found, image_truth, image_found = [], [], [], []
    for video in (1, 2):
        for _ in range(25):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 5, 5), (50, 35, 30, 25)))
            category, rle = int(rng.integers(1, 3)), rectangle(x, y, w, h)
            fields = {"bbox": list(masks.box_xywh(rle)), "area": masks.area(rle), "iscrowd": int(rng.random() < 0.1)}
            video_truth.append(track(video, category, [rle], iscrowd=fields["iscrowd"]))
            image_truth.append({"image_id": video, "category_id": category, "segmentation": rle_json(rle), **fields})
            moved, score = rectangle(x + int(rng.integers(0, 4)), y, w, h), float(rng.random())
            video_found.append(track(video, category, [moved], score=score))
            image_found.append(
                {"image_id": video, "category_id": category, "segmentation": rle_json(moved), "score": score}
            )
    images = [{"id": i, "file_name": str(i), "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    coco = {"images": images, "categories": truth_json([])["categories"], "annotations": image_truth}
    as_images = evaluate_results([write(tmp_path / "i.json", coco)], write(tmp_path / "ip.json", image_found)).to_json()
    gt = write(tmp_path / "v.json", truth_json(video_truth, length=1))
    as_videos = evaluate_track_results(gt, write(tmp_path / "vp.json", video_found)).to_json()
    for kind in ("segm", "bbox"):
        for name in ("AP", "AP50", "AP75", "APs", "APm", "AR100", "cgF1", "cgF1@0.75", "F1", "IL_MCC"):
            assert as_videos[kind][name] == pytest.approx(as_images[kind][name], abs=1e-12), (kind, name)


def boxes(x: int) -> list[list[float] | None]:
    """Boxes of a square that stands still, hidden in the middle frame."""
    return [[x, 5, 10, 10], None, [x, 5, 10, 10]]


def test_given_boxes_count_and_not_those_of_the_masks(tmp_path: Path) -> None:
    truth = write(tmp_path / "gt.json", truth_json([track(1, 1, moving())]))
    far = [[0.0, 0.0, 1.0, 1.0]] * len(moving())
    found = write(tmp_path / "p.json", [{**track(1, 1, moving(), score=0.9), "bboxes": far}])
    figures = evaluate_track_results(truth, found).to_json()
    assert figures["segm"]["HOTA"] == pytest.approx(1.0) and figures["segm"]["cgF1"] >= 0
    assert figures["bbox"]["HOTA"] == 0 and figures["bbox"]["AP"] == 0


def test_box_only_tracks_are_judged_by_their_boxes(tmp_path: Path) -> None:
    record = {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "bboxes": boxes(5)}
    truth = write(tmp_path / "gt.json", truth_json([record], length=3))
    found = write(tmp_path / "p.json", [{"video_id": 1, "category_id": 1, "score": 0.9, "bboxes": boxes(5)}])
    evaluation = evaluate_track_results(truth, found)
    assert evaluation.figures["segm"] is None
    assert evaluation.to_json()["bbox"]["HOTA"] == pytest.approx(1.0)
    with pytest.raises(InputError, match="neither segmentations nor bboxes"):
        read_video_truth(write(tmp_path / "none.json", truth_json([{**record, "bboxes": []}], length=3)))


def test_saco_video_files_list_their_pairs(tmp_path: Path) -> None:
    content = truth_json([track(1, 1, moving())])
    content["video_np_pairs"] = [
        {"video_id": 1, "category_id": 1, "noun_phrase": "a grey cat"},
        {"video_id": 2, "category_id": 1, "noun_phrase": "a grey cat"},
    ]
    truth = read_video_truth(write(tmp_path / "gt.json", content))
    assert truth.pairs == ((1, 1), (2, 1))
    out = evaluate_track_results(tmp_path / "gt.json", write(tmp_path / "p.json", []))
    assert list(out.to_json()["segm"]["by_class"]) == ["a grey cat"]
    assert out.pairs == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 9}, "annotation 1 belongs to a video or a category that is not listed"),
        ({"segmentations": 3}, "annotation 1 cannot be read"),
        ({"segmentations": [rle_json(rectangle(0, 0, 2, 2, (9, 9)))]}, "has masks of another size than its video"),
    ],
)
def test_bad_video_truth(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_video_truth(write(tmp_path / "gt.json", truth_json([{**track(1, 1, moving()), **change}])))


# ---- runs


def tracked_unit(item_id: str, start: int, found: dict[int, list[Rle | None]], score: float = 0.9) -> UnitResult:
    """A clip of two frames; `found` is track id -> its mask in each."""
    candidates: list[Candidate] = []
    for number, rles in found.items():
        for k, rle in enumerate(rles):
            if rle is not None:
                one = candidate("cat", score, rle, item_id=item_id, frame=start + k, query=number)
                candidates.append(replace(one, track_id=number))
    presence = np.full((2, 2), 0.9, np.float32)
    return UnitResult(
        MediaItem(item_id, f"/{item_id}", "video"), start, start + 2, SIZE_HW, tuple(candidates), presence
    )


def make_run(folder: Path, *units: UnitResult) -> Path:
    classes = concepts("cat", "dog")
    with Store.writer(folder, phrase_prompts(*classes.phrases), {}) as store:
        store.write(list(units))
        store.set_meta("concepts", dump_concepts(classes))
    return folder


def test_tracks_of_a_run_are_put_together_from_its_clips(tmp_path: Path) -> None:
    rles = moving()
    run = make_run(
        tmp_path / "run",
        tracked_unit("in/a.mp4", 0, {1: rles[:2]}),
        tracked_unit("in/a.mp4", 2, {1: rles[2:]}),
        tracked_unit("in/c.mp4", 0, {1: rles[:2]}),
    )
    truth = write(tmp_path / "gt.json", truth_json([track(1, 1, rles)]))
    out = evaluate_tracked_run(run, truth)
    figures = out.to_json()["segm"]
    assert figures["HOTA"] == pytest.approx(1.0)
    assert figures["F1"] > 0.999
    assert figures["AP"] == pytest.approx(1.0)
    assert (out.pairs, out.images) == (2, 1)
    assert "Not in the run, or failed, and left out: 1 of 2 videos of the truth." in out.notes


def test_tracks_that_are_missed_made_up_or_confused_are_named_with_the_frame_that_shows_them(tmp_path: Path) -> None:
    """A cat found as a cat, one found as a dog, one that nobody found, and a dog that is not there."""
    rles, small, large = moving(), rectangle(60, 2, 6, 6), rectangle(60, 2, 18, 18)
    lower = [rectangle(2 * k, 40, 15, 15) for k in range(4)]
    clip = tracked_unit("a.mp4", 0, {1: rles[:2]})
    dogs = [
        replace(candidate("dog", score, rle, item_id="a.mp4", frame=frame, query=track), track_id=track)
        for frame in range(2)
        for track, score, rle in ((2, 0.8, lower[frame]), (3, 0.7, (small, large)[frame]))
    ]
    run = make_run(tmp_path / "run", replace(clip, candidates=(*clip.candidates, *dogs)))
    unseen = [None, None, small, rectangle(50, 30, 25, 25)]
    entries = [track(1, 1, [*rles[:2], None, None]), track(1, 1, [*lower[:2], None, None]), track(1, 1, unseen)]
    truth = write(tmp_path / "gt.json", truth_json(entries, ("a",)))
    found = evaluate_tracked_run(run, truth).mistakes
    confused = sorted((m.item_id, m.truth_class, m.answer_class, m.frame) for m in found.confused)
    assert confused == [("a.mp4", "cat", "dog", 0)]
    assert [(m.item_id, m.truth_class, m.frame, m.truth.area) for m in found.missed] == [("a.mp4", "cat", 3, 25 * 25)]
    assert [(m.item_id, m.answer_class, m.frame, m.answer.area) for m in found.false_alarms] == [
        ("a.mp4", "dog", 1, 18 * 18)
    ]
    assert found.confusion is not None and found.confusion.counts.tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert found.to_json()["missed"][0]["frame"] == 3
    done = CliRunner().invoke(app, ["report", str(run), "--gt", str(truth), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    assert "cat was taken for dog (0.80)" in page and '"item": "a.mp4, frame 1"' in page


def test_a_run_of_sampled_frames_has_no_tracks(tmp_path: Path) -> None:
    item = MediaItem("a.mp4", "/a.mp4", "video")
    one = candidate("cat", 0.9, rectangle(0, 5, 20, 20), item_id="a.mp4")
    run = make_run(tmp_path / "run", UnitResult(item, 0, 1, SIZE_HW, (one,), np.full((1, 2), 0.9, np.float32)))
    truth = write(tmp_path / "gt.json", truth_json([track(1, 1, moving())]))
    with pytest.raises(InputError, match=r"so there are no tracks: run it with --video track"):
        evaluate_tracked_run(run, truth)
    with pytest.raises(InputError, match="none of the videos of .* is in the run: the truth has 'x', the run 'a'"):
        evaluate_tracked_run(run, write(tmp_path / "x.json", truth_json([], ("x",))))


def test_video_names() -> None:
    assert video_name("in/a.mp4") == video_name("./in/a") == video_name(r"in\a.MP4") == "in/a"
    assert video_name("v1.2") == "v1.2"


def test_command_line(tmp_path: Path) -> None:
    def invoke(arguments: list[str]) -> Result:
        return CliRunner().invoke(app, arguments)

    truth = str(write(tmp_path / "gt.json", truth_json([track(1, 1, moving())])))
    found = str(write(tmp_path / "p.json", [track(1, 1, moving(), score=0.9), track(7, 1, moving(), score=0.9)]))
    done = invoke(["evaluate", "--gt", truth, "--pred", found, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert "HOTA" in done.output and "by video" in done.output
    assert "1 result of a video or a category that the truth does not have: left out." in done.output
    assert json.loads((tmp_path / "out.json").read_text())["segm"]["HOTA"] == pytest.approx(1.0)
    twice = invoke(["evaluate", "--gt", truth, "--gt", truth, "--pred", found])
    assert (twice.exit_code, "a video truth is judged alone" in twice.output) == (1, True)
