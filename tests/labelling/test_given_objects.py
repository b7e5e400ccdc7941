"""Objects that a person shows in a frame of a video: a box or a mask starts a track, with its id and attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lively import make_lively
from support.videofiles import write_frames

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import ConceptList, Label
from sam3label.demo.shapes import Scene, make_clip
from sam3label.errors import ConfigError, InputError
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.videos import OVERLAP
from sam3label.run.reader import open_run

SIZE = (120, 160)
FRAMES, BOXED, MASKED = 26, 3, 5  # one object is shown by its box, another by its mask
FIRST = 2 * OVERLAP  # a clip's frames, as few as there may be


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene], tuple[int, int]]:
    """Numbered frames, what they show, and two objects that are there throughout."""
    scenes = list(make_clip(24, 60, SIZE, 4, only=range(18, 18 + FRAMES)))
    write_frames(folder := tmp_path_factory.mktemp("video") / "walk", [one.image for one in scenes], ".png")
    assert all(shown(one, track).sum() > 500 for one in scenes for track in (3, 4))
    return folder, scenes, (4, 3)


def shown(scene: Scene, track: int) -> Any:
    numbers = [k for k, thing in enumerate(scene.things, start=1) if thing.track == track]
    return scene.mask(numbers[0]) if numbers else np.zeros(scene.size_hw, bool)


def write_objects(path: Path, objects: list[tuple[str, Any, bool]], size: tuple[int, int] = SIZE) -> Path:
    """A COCO file of (image, mask, whether the mask is given or only the box around it)."""
    names = list(dict.fromkeys(name for name, _, _ in objects))
    annotations = []
    for number, (name, mask, with_mask) in enumerate(objects):
        rle = masks.encode(mask)
        own = {"id": 70 + number, "image_id": names.index(name) + 1, "category_id": 1, "bbox": masks.box_xywh(rle)}
        plain = {"size": list(SIZE), "counts": rle.counts.decode()}
        code = {"segmentation": plain} if with_mask else {}
        annotations.append({**own, **code, "area": masks.area(rle), "iscrowd": 0, "attributes": {"by": "anna"}})
    images = [{"id": n, "file_name": name, "height": size[0], "width": size[1]} for n, name in enumerate(names, 1)]
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def concepts_of(path: Path, prompts: str = "[]") -> ConceptList:
    rules = f"{{prompts: {prompts}, exemplars: {{objects: {path.name}}}}}"
    return parse_concepts(f"names: [thing]\nconcepts: {{thing: {rules}}}", "c.yaml", (), path.parent)


def follow(folder: Path, concepts: ConceptList, out: Path, model: str = "demo", **options: Any) -> Any:
    chosen = LabelOptions(**{"model": model, "workers": 0, "video": "track", "clip_frames": FIRST, **options})
    return job.label([folder], concepts, out, chosen)


def tracks_of(out: Path) -> dict[str, dict[int, Label]]:
    """By the id that a person gave, "" where none did: frame -> label. No frame has two of one id."""
    found: dict[str, dict[int, Label]] = {}
    with open_run(out) as run:
        for image in run.images():
            for label in image.labels:
                own = found.setdefault(label.given.id if label.given else f"found {label.track_id}", {})
                assert label.frame not in own
                own[label.frame] = label
    return found


@pytest.fixture(scope="module")
def objects(video: tuple[Path, list[Scene], tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, scenes, (boxed, masked) = video
    given = [
        (f"walk/{BOXED:05d}.png", shown(scenes[BOXED], boxed), False),
        (f"walk/{MASKED:05d}.png", shown(scenes[MASKED], masked), True),
    ]
    return write_objects(tmp_path_factory.mktemp("objects") / "boxes.json", given)


@pytest.fixture(scope="module")
def tracks(
    video: tuple[Path, list[Scene], tuple[int, int]], objects: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[int, Label]]:
    """What a run that nobody disturbs makes of them."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    summary = follow(video[0], concepts_of(objects), out)
    assert summary.progress.done == 1 and not summary.failures
    return tracks_of(out)


def test_a_box_and_a_mask_on_a_frame_start_tracks(
    video: tuple[Path, list[Scene], tuple[int, int]], tracks: dict[str, dict[int, Label]]
) -> None:
    _, scenes, (boxed, masked) = video
    assert set(tracks) == {"70", "71"}
    for name, first, track in (("70", BOXED, boxed), ("71", MASKED, masked)):
        own = tracks[name]
        assert sorted(own) == list(range(first, FRAMES))  # over the borders of clips, and none before
        assert len({label.track_id for label in own.values()}) == 1
        assert all(dict(label.given.attributes) == {"by": "anna"} for label in own.values() if label.given)
        assert all(label.source == "given" and (label.doubt is None) for label in own.values())
        truth = [masks.encode(shown(scenes[frame], track)) for frame in sorted(own)]
        ious = [masks.iou_matrix([own[n].rle], [one])[0, 0] for n, one in zip(sorted(own), truth, strict=True)]
        assert np.mean(ious) > 0.5
    x, y, width, height = masks.box_xywh(masks.encode(shown(scenes[BOXED], boxed)))
    assert tracks["70"][BOXED].box_xyxy == (x, y, x + width, y + height)
    assert tracks["71"][MASKED].rle == masks.encode(shown(scenes[MASKED], masked))


def test_a_run_that_stopped_goes_on_with_the_objects_it_followed(
    video: tuple[Path, list[Scene], tuple[int, int]],
    objects: Path,
    tracks: dict[str, dict[int, Label]],
    tmp_path: Path,
) -> None:
    import threading

    folder, stop = video[0], threading.Event()
    concepts = concepts_of(objects)

    def after_a_clip(progress: Any) -> None:
        if progress.frames > FIRST + 3:
            stop.set()

    options = LabelOptions(model="demo", workers=0, video="track", clip_frames=FIRST)
    job.label([folder], concepts, tmp_path / "run", options, on_progress=after_a_clip, stop=stop)
    assert 0 < len(tracks_of(tmp_path / "run")["70"]) < FRAMES - BOXED
    follow(folder, concepts, tmp_path / "run")
    assert tracks_of(tmp_path / "run") == tracks


def test_phrases_find_the_others_and_a_changed_dataset_is_asked_anew(
    video: tuple[Path, list[Scene], tuple[int, int]], objects: Path, tmp_path: Path
) -> None:
    folder, scenes, (_, masked) = video
    follow(folder, concepts_of(objects, "[shape]"), tmp_path / "run", clip_frames=600)
    tracks = tracks_of(tmp_path / "run")
    assert {"70", "71"} < set(tracks)
    given = [label.rle for name, own in tracks.items() if name in ("70", "71") for label in own.values()]
    assert len(given) == 2 * FRAMES - BOXED - MASKED
    for name, own in tracks.items():
        for frame, label in own.items():
            others = [other[frame].rle for key, other in tracks.items() if key != name and frame in other]
            assert not (masks.iou_matrix([label.rle], others) > 0.7).any()  # one object, one label
    other = write_objects(tmp_path / "boxes.json", [(f"walk/{MASKED:05d}.png", shown(scenes[MASKED], masked), False)])
    summary = follow(folder, concepts_of(other, "[shape]"), tmp_path / "run", clip_frames=600)
    assert summary.progress.done == 1
    again = tracks_of(tmp_path / "run")
    assert "71" not in again and sorted(again["70"]) == list(range(MASKED, FRAMES))
    assert follow(folder, concepts_of(other, "[shape]"), tmp_path / "run", clip_frames=600).progress.done == 0


def test_both_ways_reaches_the_frames_before(
    video: tuple[Path, list[Scene], tuple[int, int]], objects: Path, tmp_path: Path
) -> None:
    folder = video[0]
    follow(folder, concepts_of(objects), tmp_path / "run", clip_frames=600, both_ways=True)
    tracks = tracks_of(tmp_path / "run")
    assert min(tracks["70"]) < BOXED and sorted(tracks["70"])[-1] == FRAMES - 1


def test_an_object_without_a_mask_keeps_its_box_and_says_so(
    video: tuple[Path, list[Scene], tuple[int, int]], least_checkpoint: Path, tmp_path: Path
) -> None:
    """With random weights masks are what they are: the object is there in its frame whatever comes of it."""
    folder, scenes, (boxed, _) = video
    lively = make_lively(least_checkpoint, tmp_path / "lively")
    path = write_objects(tmp_path / "boxes.json", [("walk/00020.png", shown(scenes[20], boxed), False)])
    for out, options in (("official", {}), ("library", {"tracker": "transformers"}), ("ways", {"both_ways": True})):
        follow(folder, concepts_of(path), tmp_path / out, str(lively), **options)
        own = tracks_of(tmp_path / out)["70"]
        x, y, width, height = masks.box_xywh(masks.encode(shown(scenes[20], boxed)))
        assert own[20].box_xyxy == (x, y, x + width, y + height)


def test_what_cannot_be_followed_is_said(
    video: tuple[Path, list[Scene], tuple[int, int]], objects: Path, tmp_path: Path
) -> None:
    folder, scenes, (boxed, _) = video
    with pytest.raises(ConfigError, match="followed from there: --video track"):
        follow(folder, concepts_of(objects), tmp_path / "run", video="frames")
    photo = write_objects(tmp_path / "photo.json", [("photo.jpg", shown(scenes[0], boxed), False)])
    with pytest.raises(InputError, match="none of these is a photo here, or a frame of a video"):
        follow(folder, concepts_of(photo), tmp_path / "run")
    large = write_objects(tmp_path / "large.json", [("walk/00001.png", shown(scenes[1], boxed), False)], (600, 800))
    summary = follow(folder, concepts_of(large), tmp_path / "run")
    ((name, reason),) = summary.failures
    assert name == "walk" and "800 x 600" in reason
