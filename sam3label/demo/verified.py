"""What `sam3label demo --verify` does: too many labels, a person who reviews some, a verifier that earns trust.

The concept list asks for a low threshold, so that false alarms come along. A simulated person, who knows the truth,
reviews every other photo. The demo's own verifier (`eyes`), behind the protocol of a real server on this machine,
judges everything; what it said of the reviewed photos decides which of its verdicts count on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam3label.concepts.concept_list import load_concepts
from sam3label.core import masks
from sam3label.core.records import Correction, LabeledImage
from sam3label.demo.job import (
    CONCEPTS,
    DemoMetrics,
    TruthMasks,
    make_photos,
    quoted,
    refuse_foreign,
    score,
    truth_masks,
)
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.run.reader import Run, open_run
from sam3label.verify import session
from sam3label.verify.reliability import VerifierTrust
from sam3label.verify.server import ServerOptions

CONF = 0.15  # of a score: false alarms come along
NAME = "demo"  # of the model, for the server
RIGHT = 0.5  # IoU with the truth from which the simulated person keeps a label
RULES = (
    f"defaults: {{conf: {CONF}, verify: {{presence: veto, masks: {{reject_below: 0.5}}}}}} "
    "# low on purpose: a verifier looks too"
)


@dataclass(frozen=True, slots=True)
class VerifiedDemo:
    """Figures of the photos that nobody reviewed, without and with the verdicts, and what the verifier is worth."""

    before: DemoMetrics
    after: DemoMetrics
    trust: VerifierTrust
    verdicts: int
    runs: Path
    concepts: Path


def verify_demo(
    out: str | Path,
    images: int = 48,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_verdict: Callable[[int, int], None] = lambda done, total: None,
) -> VerifiedDemo:
    """Run the demo into the folder `out`. Raises `OutputError` when it holds something else than an earlier demo."""
    from sam3label.demo.eyes import serving

    folder = Path(out)
    refuse_foreign(folder)
    photos, runs, listed = folder / "photos", folder / "run", folder / "concepts.yaml"
    truth_file = make_photos(photos, images, seed, folder)
    truth = truth_masks(truth_file)
    text = CONCEPTS.format(**quoted(photos=photos, here=listed, runs=folder / "run-2"))
    lines = (RULES if line.startswith("defaults:") else line for line in text.splitlines())
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    label([photos], load_concepts(listed), runs, LabelOptions(model="demo", fresh=True), on_progress=on_progress)
    with open_run(runs) as run:
        reviewed = {item.id for item in run.items()[::2]}
        for item_id in sorted(reviewed):
            image = run.image(item_id)
            assert image is not None  # it was listed
            run.record(review(image, truth))
        with serving() as address:
            agenda = session.agenda_of(run, NAME, None)
            made = session.verify(run, agenda, ServerOptions(address, NAME, in_flight=2), on_verdict)
    assert made.trust is not None and made.done is not None  # everything was asked
    with open_run(runs) as run:
        rest = {item.id for item in run.items()} - reviewed
        before, after = (_figures(one, truth_file, rest) for one in (run.without_verdicts(), run))
    return VerifiedDemo(before, after, made.trust, made.done.verdicts, runs, listed)


def _figures(run: Run, truth: Path, photos: set[str]) -> DemoMetrics:
    return score(run, truth, 0.0, photos)


def review(image: LabeledImage, truth: TruthMasks) -> list[Correction]:
    """Return what a person who knows the truth would do with the labels of an image.

    A label that fits an object of its class is kept, once each; others are deleted, and what has none is drawn.
    """
    taken: set[tuple[str, int]] = set()
    rows = list[Correction]()
    for one in sorted(image.labels, key=lambda label: -label.score):
        objects = truth.get((image.item.id, one.class_name), [])
        overlap = masks.iou_matrix([one.rle], objects)[0].tolist() if objects else []
        free = [(iou, k) for k, iou in enumerate(overlap) if iou >= RIGHT and (one.class_name, k) not in taken]
        rows.append(Correction(image.item.id, 0, "approved" if free else "deleted", one.id))
        if free:
            taken.add((one.class_name, max(free)[1]))
    for (item_id, name), objects in truth.items():
        missed = [(k, rle) for k, rle in enumerate(objects) if item_id == image.item.id and (name, k) not in taken]
        rows += [Correction(item_id, 0, "added", f"{item_id} {name} {k}", name, rle) for k, rle in missed]
    return [*rows, Correction(image.item.id, 0, "reviewed")]
