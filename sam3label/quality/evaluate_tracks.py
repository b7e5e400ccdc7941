"""How good tracks are, against a video truth: SA-Co figures on whole tracks, COCO AP of tracks, and HOTA.

Two tracks overlap by the sum of their intersections over the sum of their unions, over all frames. With that, a pair of
(video, concept) is judged exactly like a pair of (image, concept); HOTA looks frame by frame.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Pair, Truth, TruthImage
from sam3label.annotations.youtube_vis import Track, VideoTruth, read_track_results, read_video_truth, video_name
from sam3label.core import masks
from sam3label.core.records import ConceptList, Rle
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.quality.evaluate import KINDS, Evaluation, Figures, warnings_of
from sam3label.quality.metrics import cgf1, hota
from sam3label.quality.metrics.average_precision import Kind, average_precision
from sam3label.quality.mistakes import Left, Mistake, Mistakes, Named, confusion_of, in_order
from sam3label.quality.run_answers import categories_of_classes, match_files, some
from sam3label.run.reader import Run, open_run

Floats = npt.NDArray[np.float64]
Tracks = Mapping[Pair, Sequence[Track]]


@dataclass(frozen=True, slots=True)
class TrackPredictions:
    """By pair: `answers` count as found, `followed` are what HOTA looks at, `ranked` is everything with a score."""

    answers: Tracks
    followed: Tracks
    ranked: Tracks
    item_ids: Mapping[int, str] = field(default_factory=dict)  # video id of the truth -> the run's


def evaluate_track_results(truth_path: str | Path, results_path: str | Path) -> Evaluation:
    """Judge a YouTube-VIS results file. Raises `InputError`."""
    truth = read_video_truth(truth_path)
    ranked, unknown = read_track_results(results_path, truth)
    notes = (
        [f"{count(unknown, 'result')} of a video or a category that the truth does not have: left out."]
        if unknown
        else []
    )
    predictions = TrackPredictions(
        {pair: [t for t in tracks if t.score >= cgf1.MIN_SCORE] for pair, tracks in ranked.items()},
        {pair: [t for t in tracks if t.score > cgf1.MIN_SCORE] for pair, tracks in ranked.items()},  # strictly, here
        ranked,
    )
    return evaluate_tracks(truth, predictions, notes)


def evaluate_tracked_run(
    run_folder: str | Path | Sequence[str | Path], truth_path: str | Path, concepts: ConceptList | None = None
) -> Evaluation:
    """Judge the tracks of a run. Raises `InputError`, also when the run's videos were sampled and not tracked."""
    truth = read_video_truth(truth_path)
    notes: list[str] = []
    with open_run(run_folder, concepts) as run:
        judged, predictions = tracks_of_run(run, truth, notes)
    return evaluate_tracks(judged, predictions, notes)


def evaluate_tracks(truth: VideoTruth, predictions: TrackPredictions, notes: Sequence[str] = ()) -> Evaluation:
    """Judge tracks given by the pairs of the truth."""
    if not truth.pairs:
        raise InputError(f"{truth.path} leaves nothing to judge: no (video, concept) pair is labelled exhaustively.")
    boxes_only = _is_boxes_only(truth.tracks) or _is_boxes_only(predictions.ranked)
    figures: dict[Kind, Figures | None] = dict.fromkeys(KINDS)
    mistakes: Mistakes | None = None  # by masks where there are some
    for kind in KINDS[boxes_only:]:
        scores = {pair: _score(kind, pair, truth, predictions) for pair in truth.pairs}
        figures[kind] = _figures(kind, truth, predictions, scores)
        mistakes = mistakes or _mistakes(kind, truth, predictions, scores)
    assert mistakes is not None  # boxes are always judged
    warnings = warnings_of(figures["segm"] or figures["bbox"] or {})
    videos = len({pair[0] for pair in truth.pairs})
    return Evaluation(figures, len(truth.pairs), videos, (*notes, *warnings), mistakes)


def _is_boxes_only(tracks: Tracks) -> bool:
    """Return whether there are tracks, and none of them has a mask: then masks cannot be judged."""
    every = [track for some_tracks in tracks.values() for track in some_tracks]
    return bool(every) and not any(track.masks for track in every)


# ---- tracks of a run


def tracks_of_run(run: Run, truth: VideoTruth, notes: list[str]) -> tuple[VideoTruth, TrackPredictions]:
    """Return (truth reduced to what the run can answer, the run's tracks by its pairs)."""
    known = _videos_of_truth(run, truth, notes)
    categories = categories_of_classes(run.concepts, truth.categories, truth.path, notes)
    answers = _collect(run, truth, known, categories, notes)
    ranked = _collect(run.without_thresholds(), truth, known, categories, [])
    judged = set(categories.values())
    pairs = tuple(pair for pair in truth.pairs if pair[0] in known.values() and pair[1] in judged)
    item_ids = {video_id: item_id for item_id, video_id in known.items()}
    return replace(truth, pairs=pairs), TrackPredictions(answers, answers, ranked, item_ids)


def _videos_of_truth(run: Run, truth: VideoTruth, notes: list[str]) -> dict[str, int]:
    """Item id of the run -> video id of the truth."""
    items = {video_name(item.id): item.id for item in run.items("video")}
    matched = match_files([video.name for video in truth.videos.values()], items)
    known = {items[matched[video.name]]: i for i, video in truth.videos.items() if video.name in matched}
    for unit in run.done_units():
        size_hw = truth.videos[known[unit.item.id]].size_hw if unit.item.id in known else None
        if size_hw is not None and size_hw != unit.size_hw:
            raise InputError(f"{unit.item.id} is of another size in {truth.path} than in the run: not the same video.")
    if not known:
        names = [video.name for video in truth.videos.values()]
        raise InputError(
            f"none of the videos of {truth.path} is in the run: the truth has {some(names)}, the run {some(items)}."
        )
    if missing := len(truth.videos) - len(known):
        videos = count(len(truth.videos), "video")
        notes.append(f"Not in the run, or failed, and left out: {missing} of {videos} of the truth.")
    return known


def _collect(
    run: Run, truth: VideoTruth, known: Mapping[str, int], categories: Mapping[int, int], notes: list[str]
) -> dict[Pair, list[Track]]:
    """Labels with the same class and track id as tracks with the score of their best label; frames that truth has."""
    seen: dict[tuple[int, int, int], dict[int, tuple[Rle, float]]] = defaultdict(dict)
    loose = 0
    for unit in run.done_units():
        if unit.item.id not in known:
            continue
        length = truth.videos[known[unit.item.id]].length
        for image in (i for i in run.unit_images(unit) if i.frame < length):
            for label in image.labels:
                loose += label.track_id is None
                if label.class_id in categories and label.track_id is not None:
                    key = known[unit.item.id], categories[label.class_id], label.track_id
                    seen[key][image.frame] = label.rle, label.score
    if loose and not seen:
        raise InputError(
            "the run labelled single frames of its videos, so there are no tracks: run it with --video track."
        )
    if loose:
        notes.append(f"Left out: {count(loose, 'label')} of no track.")
    tracks: dict[Pair, list[Track]] = defaultdict(list)
    for (video_id, category_id, _), frames in seen.items():
        rles = {frame: rle for frame, (rle, _) in frames.items()}
        tracks[video_id, category_id].append(Track(rles, max(score for _, score in frames.values())))
    return tracks


# ---- overlaps


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Of one pair: `iou` of whole tracks [D, G] (crowds: share of the prediction inside), and frame by frame."""

    iou: Floats
    frames: list[hota.ComparedFrame]


def _overlap(kind: Kind, found: Sequence[Track], truth: Sequence[Track]) -> _Overlap:
    shared, found_size, truth_size = np.zeros((len(found), len(truth))), np.zeros(len(found)), np.zeros(len(truth))
    frames = []
    found_by_frame, truth_by_frame = ([_shapes(kind, track) for track in tracks] for tracks in (found, truth))
    for frame in sorted({f for shapes in (*found_by_frame, *truth_by_frame) for f in shapes}):
        d = np.array([i for i, shapes in enumerate(found_by_frame) if frame in shapes], dtype=np.int64)
        g = np.array([i for i, shapes in enumerate(truth_by_frame) if frame in shapes], dtype=np.int64)
        both, d_size, g_size = _frame_overlap(
            kind, [found_by_frame[i][frame] for i in d], [truth_by_frame[i][frame] for i in g]
        )
        shared[np.ix_(d, g)] += both
        found_size[d] += d_size
        truth_size[g] += g_size
        frames.append(hota.ComparedFrame(g, d, (both / (d_size[:, None] + g_size[None, :] - both)).T))
    union = found_size[:, None] + truth_size[None, :] - shared
    crowd = np.array([track.crowd for track in truth], dtype=bool)
    whole = np.where(crowd[None, :], found_size[:, None], union)
    return _Overlap(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0), frames)


def _shapes(kind: Kind, track: Track) -> Mapping[int, Any]:
    """Return what is compared of a track in each of its frames: masks, or boxes as the official tool takes them."""
    return track.masks if kind == "segm" else track.boxes


def _frame_overlap(kind: Kind, found: Sequence[Any], truth: Sequence[Any]) -> tuple[Floats, Floats, Floats]:
    """Return (intersections [D, G], sizes [D], sizes [G]) in pixels, of masks or of boxes xywh. None is empty."""
    if kind == "segm":
        d_size, g_size = (np.array([masks.area(rle) for rle in rles], dtype=float) for rles in (found, truth))
        return np.rint(masks.cover_matrix(found, truth) * d_size[:, None]), d_size, g_size
    d, g = (np.array(boxes, dtype=float).reshape(-1, 4) for boxes in (found, truth))
    low = np.maximum(d[:, None, :2], g[None, :, :2])
    high = np.minimum((d[:, :2] + d[:, 2:])[:, None], (g[:, :2] + g[:, 2:])[None])
    return np.clip(high - low, 0, None).prod(axis=2), d[:, 2:].prod(axis=1), g[:, 2:].prod(axis=1)


# ---- mistakes


def _mistakes(
    kind: Kind, truth: VideoTruth, predictions: TrackPredictions, scores: Mapping[Pair, cgf1.PairScore]
) -> Mistakes:
    """Return every track that was missed, made up or given another class."""
    hits: Counter[str] = Counter()
    left: dict[int, Left[Track]] = defaultdict(Left)
    for pair in truth.pairs:
        name, answers = truth.categories[pair[1]], predictions.answers.get(pair, ())
        hits[name] += left[pair[0]].take(name, scores[pair], answers, _objects(truth, pair))
    mistakes = [
        _mistake(predictions.item_ids.get(video_id, truth.videos[video_id].name), there, answer)
        for video_id, rest in left.items()
        for there, answer in rest.across(
            _overlap(kind, [track for _, track in rest.found], [track for _, track in rest.truth]).iou
        )
    ]
    asked = {pair[1] for pair in truth.pairs}
    names = [name for i, name in truth.categories.items() if i in asked]
    return in_order(kind, mistakes, confusion_of(names, hits, mistakes))


def _mistake(item_id: str, there: Named[Track] | None, answer: Named[Track] | None) -> Mistake:
    """Show a track, or two that are one object, in the frame where the smaller of them is largest."""
    boxes = [one[1].boxes for one in (there, answer) if one is not None]
    frames = sorted(set.intersection(*({*of_one} for of_one in boxes)))
    sizes = {frame: min(of_one[frame][2] * of_one[frame][3] for of_one in boxes) for frame in frames}
    frame = max(sizes, key=lambda number: sizes[number], default=0)
    truth_class, truth = _shown(there, frame)
    answer_class, found = _shown(answer, frame)
    return Mistake(item_id, truth_class, truth, answer_class, found, frame)


def _shown(one: Named[Track] | None, frame: int) -> tuple[str, JudgedObject] | tuple[None, None]:
    if one is None:
        return None, None
    name, track = one
    rle = track.masks.get(frame)
    x, y, w, h = masks.box_xywh(rle) if rle is not None else track.boxes.get(frame, (0.0, 0.0, 0.0, 0.0))
    area = float(w * h if rle is None else masks.area(rle))
    return name, JudgedObject((x, y, w, h), area, w * h, rle, track.score)


# ---- figures


def _objects(truth: VideoTruth, pair: Pair) -> list[Track]:
    return [track for track in truth.tracks.get(pair, ()) if not track.crowd]


def _score(kind: Kind, pair: Pair, truth: VideoTruth, predictions: TrackPredictions) -> cgf1.PairScore:
    return cgf1.match(_overlap(kind, predictions.answers.get(pair, ()), _objects(truth, pair)).iou)


def _figures(
    kind: Kind, truth: VideoTruth, predictions: TrackPredictions, scores: Mapping[Pair, cgf1.PairScore]
) -> Figures:
    counts: dict[Pair, hota.TrackCounts] = {}
    for pair in truth.pairs:
        objects, followed = _objects(truth, pair), predictions.followed.get(pair, ())
        counts[pair] = hota.count(_overlap(kind, followed, objects).frames, len(objects), len(followed))
    precision = average_precision(
        *_as_instances(truth, predictions.ranked), kind, _ranked_iou(kind, truth, predictions)
    )
    return {
        **cgf1.summarize(scores.values()),
        **hota.summarize(hota.add(counts.values())),
        **precision.overall,
        "by_class": _grouped(scores, counts, {pair: truth.categories[pair[1]] for pair in truth.pairs}),
        "by_video": _grouped(scores, counts, {pair: truth.videos[pair[0]].name for pair in truth.pairs}),
    }


def _grouped(
    scores: Mapping[Pair, cgf1.PairScore], counts: Mapping[Pair, hota.TrackCounts], group_of: Mapping[Pair, str]
) -> dict[str, Figures]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair, name in group_of.items():
        groups[name].append(pair)
    return {
        name: {
            "pairs": len(pairs),
            **cgf1.summarize(scores[pair] for pair in pairs),
            **hota.summarize(hota.add(counts[pair] for pair in pairs)),
        }
        for name, pairs in sorted(groups.items())
    }


def _ranked_iou(kind: Kind, truth: VideoTruth, predictions: TrackPredictions) -> dict[Pair, Floats]:
    return {
        pair: _overlap(kind, predictions.ranked.get(pair, ()), truth.tracks.get(pair, ())).iou for pair in truth.pairs
    }


def _as_instances(truth: VideoTruth, ranked: Tracks) -> tuple[Truth, dict[Pair, list[JudgedObject]]]:
    """Tracks as average precision sees them: a score, a crowd flag, and the mean area where they are seen."""

    def instance(track: Track) -> JudgedObject:
        areas = [float(masks.area(rle)) for rle in track.masks.values()]
        areas = areas or [w * h for _, _, w, h in track.boxes.values()]
        area = float(np.mean(areas)) if areas else 0.0
        return JudgedObject((0.0, 0.0, 0.0, 0.0), area, area, None, track.score, track.crowd)

    objects, found = (
        {pair: [instance(track) for track in tracks] for pair, tracks in by_pair.items()}
        for by_pair in (truth.tracks, ranked)
    )
    images = {i: TruthImage(video.name, video.size_hw) for i, video in truth.videos.items()}
    return Truth(truth.path, images, truth.categories, objects, truth.pairs, frozenset(), by_phrase=False), found
