"""Datasets read back by readers that are not ours: datumaro, FiftyOne, supervision, torchvision, TrackEval."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.hardshapes import shape
from support.labelled import NAMES, SIZE_HW, concept_list, image, label

from sam3label.core import masks
from sam3label.core.records import LabeledImage, MediaItem
from sam3label.export.options import Options
from sam3label.export.write import write_dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import datumaro
    import supervision
    import trackeval
    from torchvision.datasets import CocoDetection, VOCDetection

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

KINDS = ("donut", "two parts", "corner of the image")


@pytest.fixture
def images(tmp_path: Path) -> list[LabeledImage]:
    ids = ("a.jpg", "b/IMG_2.JPG", "c.jpeg", "d.jpg")
    return [
        image(
            tmp_path / "photos",
            item_id,
            [label(masks.encode(shape(kind)), k, label_id=f"{item_id}{k}") for k, kind in enumerate(KINDS[:n])],
        )
        for n, item_id in enumerate(ids)
    ]


def written(images: list[LabeledImage], kind: str, out: Path, **options: Any) -> Path:
    write_dataset(concept_list(), images, kind, out, Options(**options))
    return out


def counts(images: list[LabeledImage]) -> Counter[str]:
    return Counter(NAMES[x.class_id] for item in images for x in item.labels)


def unpacked(archive: Path) -> Path:
    """As CVAT does it before it reads an import."""
    shutil.unpack_archive(archive, archive.with_suffix(""))
    return archive.with_suffix("")


def datumaro_labels(dataset: Any) -> Counter[str]:
    names = [c.name for c in dataset.categories()[datumaro.AnnotationType.label]]
    shapes = [a for item in dataset for a in item.annotations if a.type != datumaro.AnnotationType.bbox]
    boxes = [a for item in dataset for a in item.annotations if a.type == datumaro.AnnotationType.bbox]
    return Counter(names[a.label] for a in shapes or boxes)  # of COCO it reads both


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_datumaro_reads_cvat(tmp_path: Path, images: list[LabeledImage], segmentation: Any) -> None:
    out = written(images, "cvat", tmp_path / "set", segmentation=segmentation)
    dataset = datumaro.Dataset.import_from(str(unpacked(out / "train.zip")), "cvat")
    assert {item.id for item in dataset} == {"a", "b/IMG_2", "c", "d"}
    found = datumaro_labels(dataset)
    parts = Counter({"dog": 2}) if segmentation == "polygon" else Counter[str]()  # a polygon a part
    assert found == counts(images) + parts


def test_datumaro_reads_voc_with_our_class_names(tmp_path: Path, images: list[LabeledImage]) -> None:
    dataset = datumaro.Dataset.import_from(str(written(images, "voc", tmp_path / "set", flat=True)), "voc_detection")
    assert datumaro_labels(dataset) == counts(images)


def test_datumaro_reads_coco(tmp_path: Path, images: list[LabeledImage]) -> None:
    dataset = datumaro.Dataset.import_from(str(written(images, "coco", tmp_path / "set")), "coco_instances")
    assert datumaro_labels(dataset) == counts(images)


def test_datumaro_reads_the_layout_of_roboflow(tmp_path: Path, images: list[LabeledImage]) -> None:
    out = written(images, "coco-roboflow", tmp_path / "set", splits=_halves())
    assert datumaro_labels(datumaro.Dataset.import_from(str(out), "roboflow_coco")) == counts(images)


@pytest.mark.parametrize("kind", ["coco", "coco-zero", "coco-roboflow"])
def test_supervision_reads_coco_with_exact_masks(tmp_path: Path, images: list[LabeledImage], kind: str) -> None:
    out = written(images, kind, tmp_path / "set", segmentation="rle")
    photos, labels = (
        ("train", "train/_annotations.coco.json")
        if kind == "coco-roboflow"
        else ("images", "annotations/instances_train.json")
    )
    read = supervision.DetectionDataset.from_coco(str(out / photos), str(out / labels), force_masks=True)
    found = {Path(path).relative_to(out / photos).as_posix(): one for path, _, one in read}
    assert len(found) == len(images)
    for item in images:
        one, meant = found[item.item.id], [masks.decode(x.rle) for x in item.labels]
        assert [read.classes[i] for i in one.class_id] == [NAMES[x.class_id] for x in item.labels]
        assert not meant or np.array_equal(one.mask, meant)


def test_torchvision_reads_every_jpeg_of_voc(tmp_path: Path, images: list[LabeledImage]) -> None:
    out = written(images, "voc", tmp_path / "VOCdevkit/VOC2012", splits=_halves())
    for split in ("train", "val", "trainval"):
        read = VOCDetection(str(tmp_path), year="2012", image_set=split)
        assert len(read) == len((out / f"ImageSets/Main/{split}.txt").read_text().split())
        assert all(pixels.size == SIZE_HW[::-1] for pixels, _ in read)
    assert len(VOCDetection(str(tmp_path), year="2012", image_set="trainval")) == len(images)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_torchvision_sees_photos_as_their_labels_do(tmp_path: Path, orientation: int) -> None:
    """A phone's photo: white where the object is, stored turned. Nothing in torchvision looks at EXIF."""
    seen = np.repeat(shape("corner of the image")[..., None] * np.uint8(255), 3, axis=2)
    stored = np.rot90(seen, {3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "phone.jpg"
    Image.fromarray(stored).save(path, exif=exif, quality=95)
    item = LabeledImage(MediaItem("phone.jpg", str(path)), SIZE_HW, (label(masks.encode(seen[..., 0])),))
    out = tmp_path / "set"
    summary = write_dataset(concept_list(), [item], "coco", out)
    assert "1 photo turned by EXIF, written upright: not every reader looks at EXIF." in summary.notes
    with contextlib.redirect_stdout(io.StringIO()):
        read = CocoDetection(str(out / "images"), str(out / "annotations/instances_train.json"))
        pixels, targets = read[0]
        mask = read.coco.annToMask(targets[0])
    assert (np.abs(np.asarray(pixels)[..., 0].astype(int) - 255 * mask.astype(int)) < 60).mean() > 0.99
    assert path.read_bytes() != (out / "images/phone.jpg").read_bytes()
    kept = tmp_path / "kept"
    write_dataset(concept_list(), [item], "coco", kept, Options(images="hardlink"))
    assert (kept / "images/phone.jpg").samefile(path)


def test_supervision_reads_flat_yolo_and_voc(tmp_path: Path, images: list[LabeledImage]) -> None:
    out = written(images, "yolo", tmp_path / "yolo", flat=True)
    assert sorted(p.name for p in (out / "images/train").iterdir()) == [
        "a.jpg",
        "b__IMG_2_JPG.JPG",
        "c_jpeg.jpeg",
        "d.jpg",
    ]
    yolo = supervision.DetectionDataset.from_yolo(
        str(out / "images/train"), str(out / "labels/train"), str(out / "data.yaml")
    )
    assert sum(len(found) for _, _, found in yolo) == sum(counts(images).values())
    out = written(images, "voc", tmp_path / "voc", flat=True)
    voc = supervision.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    assert sum(len(found) for _, _, found in voc) == sum(counts(images).values())


def test_fiftyone_reads_cvat_polygons(fo: Any, tmp_path: Path, images: list[LabeledImage]) -> None:
    """Its importer knows boxes, polygons and points, but no <mask>."""
    from fiftyone.utils import cvat

    out = written(images, "cvat", tmp_path / "set", segmentation="polygon")
    _, _, found = cvat.load_cvat_image_annotations(str(unpacked(out / "train.zip") / "annotations.xml"))
    names = Counter(polyline.label for one in found for polyline in one.polygons)
    assert names == counts(images) + Counter({"dog": 2})


def test_fiftyone_reads_coco_yolo_and_voc(fo: Any, tmp_path: Path, images: list[LabeledImage]) -> None:
    """By its own importers, names and counts; of COCO the masks too."""
    coco = written(images, "coco", tmp_path / "coco")
    yolo = written(images, "yolo", tmp_path / "yolo")
    voc = written(images, "voc", tmp_path / "voc")
    ways: dict[str, dict[str, Any]] = {
        "coco": {
            "dataset_type": fo.types.COCODetectionDataset,
            "data_path": str(coco / "images"),
            "labels_path": str(coco / "annotations/instances_train.json"),
            "label_types": "segmentations",
        },
        "yolo": {
            "dataset_type": fo.types.YOLOv5Dataset,
            "dataset_dir": str(yolo),
            "yaml_path": "data.yaml",
            "split": "train",
            "label_type": "polylines",
        },
        "voc": {
            "dataset_type": fo.types.VOCDetectionDataset,
            "data_path": str(voc / "JPEGImages"),
            "labels_path": str(voc / "Annotations"),
        },
    }
    for kind, way in ways.items():
        dataset = fo.Dataset.from_dir(**way, progress=False)
        try:
            found: Counter[str] = Counter()
            for sample in dataset:
                name = next(n for n in sample.field_names if n in ("segmentations", "ground_truth"))
                labels = sample[name]
                found.update(x.label for x in (labels[labels._LABEL_LIST_FIELD] if labels else ()))
            assert found == counts(images), kind
        finally:
            dataset.delete()


# ---- videos


def frames_of(tmp_path: Path, name: str) -> list[LabeledImage]:
    """A folder of three frames in which two objects move."""
    found = []
    for number in range(3):
        path = tmp_path / "videos" / name / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (number, 0, 0)).save(path)
        labels = []
        for track in range(2):
            canvas = np.zeros(SIZE_HW, np.bool_)
            canvas[5 + 25 * track : 20 + 25 * track, 5 + 4 * number : 30 + 4 * number] = True
            one = label(masks.encode(canvas), 1, label_id=f"{number}{track}")
            labels.append(
                type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"track_id": track, "frame": number})
            )
        found.append(LabeledImage(MediaItem(name, str(path.parent), "video"), SIZE_HW, tuple(labels), False, number))
    return found


@pytest.mark.parametrize("kind", ["mot", "mots"])
def test_trackeval_opens_and_scores_mot_and_mots(tmp_path: Path, kind: str) -> None:
    """Names with a comma: seqmap.txt is CSV there. A dataset scored against itself has HOTA 1."""
    out = written([*frames_of(tmp_path, "a"), *frames_of(tmp_path, "clip,1")], kind, tmp_path / "set")
    predictions = tmp_path / "predictions/self/data"
    predictions.mkdir(parents=True)
    for name in ("a", "clip,1"):
        (predictions / f"{name}.txt").write_text((out / f"train/{name}/gt/gt.txt").read_text())
    settings = {
        "GT_FOLDER": str(out / "train"),
        "TRACKERS_FOLDER": str(tmp_path / "predictions"),
        "SEQMAP_FILE": str(out / "train/seqmap.txt"),
        "SKIP_SPLIT_FOL": True,
        "DO_PREPROC": False,
        "CLASSES_TO_EVAL": ["pedestrian"],
        "PRINT_CONFIG": False,
    }
    if kind == "mot":  # its pedestrian is class 1
        text = {p: p.read_text() for p in [*out.glob("train/*/gt/gt.txt"), *predictions.iterdir()]}
        for path, lines in text.items():
            path.write_text("".join(re_classed(line) + "\n" for line in lines.splitlines()))
    dataset = trackeval.datasets.MotChallenge2DBox if kind == "mot" else trackeval.datasets.MOTSChallenge
    assert score(dataset(settings), "pedestrian") == pytest.approx(1.0)


def re_classed(line: str) -> str:
    parts = line.split(",")
    assert len(parts) == 9 and parts[7] == "2"
    return ",".join([*parts[:7], "1", parts[8]])


def test_trackeval_scores_youtube_vis(tmp_path: Path) -> None:
    """It knows run lengths that are not compressed, alone: others raise in it."""
    out = written([*frames_of(tmp_path, "a"), *frames_of(tmp_path, "b")], "ytvis", tmp_path / "set")
    truth = json.loads((out / "train/instances.json").read_text())
    assert isinstance(truth["annotations"][0]["segmentations"][0]["counts"], list)
    results = [
        {**one, "segmentations": [m and {**m, "counts": compressed(m)} for m in one["segmentations"]]}
        for one in truth["annotations"]
    ]
    predictions = tmp_path / "predictions/youtube_vis_train/self/data"  # the layout it insists on
    predictions.mkdir(parents=True)
    (predictions / "results.json").write_text(json.dumps(results))
    (tmp_path / "truth/youtube_vis_train").mkdir(parents=True)
    (tmp_path / "truth/youtube_vis_train/train.json").write_text((out / "train/instances.json").read_text())
    settings = {
        "GT_FOLDER": f"{tmp_path}/truth/",
        "TRACKERS_FOLDER": f"{tmp_path}/predictions/",
        "SPLIT_TO_EVAL": "train",
        "PRINT_CONFIG": False,
    }
    assert score(trackeval.datasets.YouTubeVIS(settings), "dog") == pytest.approx(1.0)


def compressed(mask: dict[str, Any]) -> str:
    return masks.from_runs(mask["counts"], tuple(mask["size"])).counts.decode()


def score(dataset: Any, name: str) -> float:
    settings = {"PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False}
    settings |= {"OUTPUT_DETAILED": False, "PLOT_CURVES": False, "BREAK_ON_ERROR": True, "LOG_ON_ERROR": None}
    metric = trackeval.metrics.HOTA({"PRINT_CONFIG": False})
    with contextlib.redirect_stdout(io.StringIO()):
        results, _ = trackeval.Evaluator(settings).evaluate([dataset], [metric])
    return float(np.mean(results[dataset.get_name()]["self"]["COMBINED_SEQ"][name]["HOTA"]["HOTA"]))


def _halves() -> Any:
    from sam3label.export.splits import parse_splits

    return parse_splits("train=0.5,val=0.5")
