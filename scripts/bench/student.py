"""What the labels are for: a YOLO nano segment model trained on demo scenes as we label them, and on their truth.

    python scripts/bench/student.py --work build/student        # needs ultralytics and polars
    python scripts/bench/student.py --epochs 25 --side 192      # an hour of one core; a student that is judged is kept

Both students start from the same random weights, see the same photos in the same order for the same epochs, and are
judged by mAP on scenes with truth. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import sam3label as sl
from sam3label.demo.shapes import SHAPES, write_scenes

TAUGHT, JUDGED = 9_100_000, 9_300_000  # seeds the demo checkpoint never saw


def datasets(work: Path, scenes: int, judged: int, size_hw: tuple[int, int]) -> dict[str, Path]:
    """Return a YOLO dataset labelled by us and one by truth, over the same photos, judged by the same truth."""
    classes = {name: name for name in SHAPES}
    photos, exam = work / "photos", work / "exam"
    for folder, count, seed in ((photos, scenes, TAUGHT), (exam, judged, JUDGED)):
        if not (folder.with_suffix(".json")).exists():
            write_scenes(folder, count, seed, classes, size_hw).replace(folder.with_suffix(".json"))
    concepts = {name: {"conf": 0.4} for name in SHAPES}
    run = sl.label(photos, concepts, out=work / "run", model="demo", workers=0)
    made = {"ours": work / "ours", "truth": work / "truth"}
    if not made["ours"].exists():
        run.export("yolo", made["ours"])
        write_yolo(photos, photos.with_suffix(".json"), made["truth"])
    figures = run.evaluate(photos.with_suffix(".json")).figures["segm"]
    assert figures is not None
    (work / "labels.json").write_text(json.dumps({name: figures[name] for name in ("cgF1", "F1@0.5", "F1")}))
    judge = work / "judge"
    if not judge.exists():
        write_yolo(exam, exam.with_suffix(".json"), judge)
    return {name: with_exam(folder, judge, work / f"{name}.yaml") for name, folder in made.items()}


def write_yolo(photos: Path, truth: Path, out: Path) -> None:
    """Write COCO truth as YOLO polygons, by our own exporter's drawing of masks."""
    from sam3label.annotations.coco import read_coco
    from sam3label.core import outlines

    read = read_coco(truth)
    images, labels = out / "images" / "train", out / "labels" / "train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    order = list(read.categories)
    for number, image in read.images.items():
        os.link(photos / image.file_name, images / image.file_name)
        assert image.size_hw is not None
        height, width = image.size_hw
        lines = []
        for (image_id, category), found in read.objects.items():
            if image_id != number:
                continue
            for one in found:
                assert one.rle is not None
                points = [f"{x / width:.6f} {y / height:.6f}" for x, y in outlines.contour(one.rle)]
                lines.append(f"{order.index(category)} {' '.join(points)}")
        (labels / Path(image.file_name).with_suffix(".txt")).write_text("\n".join(lines) + "\n")


def with_exam(folder: Path, judge: Path, out: Path) -> Path:
    """Write a data.yaml that trains on one dataset and is judged by the other."""
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(SHAPES))
    out.write_text(
        f"path: {folder.resolve()}\ntrain: images/train\nval: {judge.resolve()}/images/train\nnames:\n{names}\n"
    )
    return out


def train(data: Path, work: Path, epochs: int, side: int, seed: int) -> dict[str, Any]:
    """Train a nano segment model from scratch, and return its mAP on the exam."""
    from ultralytics import YOLO

    model = YOLO("yolo11n-seg.yaml")
    model.train(
        data=str(data), epochs=epochs, imgsz=side, batch=16, device="cpu", workers=0, seed=seed, deterministic=True,
        project=str((work / "students").resolve()), name=data.stem, exist_ok=True, pretrained=False, plots=False,
        verbose=False, amp=False,
    )  # fmt: skip
    judged = model.val(data=str(data), imgsz=side, device="cpu", workers=0, plots=False, verbose=False)
    return {"mask_mAP": float(judged.seg.map), "mask_mAP50": float(judged.seg.map50), "box_mAP": float(judged.box.map)}


def draw(students: Path, out: Path) -> None:
    """Draw the students' mask mAP by epoch."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, label in (("truth", "taught by the truth"), ("ours", "taught by our labels")):
        rows = list(csv.DictReader((students / name / "results.csv").open(encoding="utf-8")))
        axes.plot([int(r["epoch"]) for r in rows], [float(r["metrics/mAP50-95(M)"]) for r in rows], label=label)
    axes.set(xlabel="epoch", ylabel="mask mAP (0.5 to 0.95) on 300 scenes with truth", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--exam", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/student"))
    parser.add_argument("--plot", type=Path, help="draw both students' mAP by epoch")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = datasets(args.work, args.scenes, args.exam, (240, 320))
    figures = {}
    for name, data in made.items():
        judged = args.work / f"{name}.json"
        if not judged.exists():
            judged.write_text(json.dumps(train(data, args.work, args.epochs, args.side, args.seed)))
        figures[name] = json.loads(judged.read_text())
    if args.plot:
        draw(args.work / "students", args.plot)
    ratio = figures["ours"]["mask_mAP"] / figures["truth"]["mask_mAP"]
    print(json.dumps({**figures, "ratio": ratio, "labels": json.loads((args.work / "labels.json").read_text())}))


if __name__ == "__main__":
    main()
