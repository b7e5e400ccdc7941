"""A COCO dataset, one file after the other: only one JSON is in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.validate import coco, coco_readers
from sam3label.validate.photos import check_shared
from sam3label.validate.report import Consumer, Findings, Report, Split, in_order
from sam3label.validate.roundtrip import ExportedImage, Held, Instances, Reading, compare, export_options

if TYPE_CHECKING:
    from sam3label.run.reader import Run


def validate_coco(path: Path, run: Run | None) -> Report | None:
    """Check every file of a COCO dataset; None if there is none. Raises `InputError` for what is no COCO JSON."""
    found = coco.find(path)
    if not found:
        return None
    collected = _Collected(Findings(), keep=run is not None)
    for split, file in found:
        collected.add(coco.read(split, file))
    collected.finish(path)
    trip = compare(run, export_options(path), collected.reading(), collected.findings) if run else None
    return Report(
        str(path),
        "COCO, Roboflow layout" if collected.roboflow else "COCO",
        collected.classes[0],
        in_order(collected.splits),
        tuple(collected.consumers),
        collected.findings.sorted(),
        trip,
    )


class _Collected:
    """What is kept of each file. With `keep`, the masks too, as run-length code."""

    def __init__(self, findings: Findings, keep: bool) -> None:
        self.findings, self.keep = findings, keep
        self.roboflow = False
        self.splits: list[Split] = []
        self.consumers: list[Consumer] = []
        self.classes: list[dict[Any, str]] = []
        self.photos: dict[str, list[Path]] = {}
        self.held: dict[str, tuple[Instances, Path | None]] = {}

    def add(self, file: coco.CocoFile) -> None:
        checked = coco.check(file, self.findings)
        self.roboflow |= file.roboflow
        self.splits.append(checked.split)
        self.consumers.extend(coco_readers.consume(file, checked, self.findings))
        self.classes.append(file.names)
        self.photos[file.split] = list(file.photos())
        if self.keep:
            root = file.image_root
            self.held |= {name: (found, root and root / name) for name, found in coco.instances(file).items()}

    def finish(self, path: Path) -> None:
        """Add what only all files together show."""
        findings = self.findings
        names = {split.name for split in self.splits}
        if self.roboflow and "valid" not in names:
            findings.drops("RF-DETR", "there is no valid/ split: training stops (export with --split)", str(path))
        if any(classes != self.classes[0] for classes in self.classes):
            findings.drops("every trainer", "the splits have different classes", str(path))
        if not any(split.images for split in self.splits):
            findings.drops("every trainer", "there is no image", str(path))
        elif not any(split.instances.total() for split in self.splits):
            findings.drops("every trainer", "there is no annotation: nothing to learn", str(path))
        check_shared(self.photos, findings)

    def reading(self) -> Reading:
        def held(asked: ExportedImage) -> Held | None:
            found = self.held.get(asked.image.item.id)
            return found and Held(*found)

        return Reading("segment", held)
