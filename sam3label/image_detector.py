"""SAM 3 for one image at a time, as `import sam3label` gives it: `sl.Detector`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts.concept_list import concepts_from
from sam3label.core.records import ConceptList, Frame, LabeledImage, MediaItem, Prompt
from sam3label.labelled_run import Source
from sam3label.labelling.options import LabelOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image


class ImageDetector:
    """Finds objects in one image at a time, without a run folder: `sl.Detector`.

    `model`, `revision`, `device` and `dtype` are as in `LabelOptions`.

    >>> path = next(image.path for image in sl.open_run("runs/demo") if image.labels)
    >>> with sl.Detector("demo") as detector:
    ...     found = detector(path, ["circle", "star"], floor=0.3)
    >>> found.size, sorted({label.class_name for label in found.labels})
    ((640, 480), ['circle', 'star'])
    """

    def __init__(
        self, model: str = "facebook/sam3", *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> None:
        from sam3label.model.checkpoint import resolve
        from sam3label.model.detector import Detector

        chosen = LabelOptions(model=model, revision=revision, device=device, dtype=dtype)  # type: ignore[arg-type]
        self._model: Detector | None = Detector.load(
            resolve(chosen.model, chosen.revision), device=chosen.device, dtype=chosen.dtype, single=True
        )

    def __enter__(self) -> ImageDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None

    def __call__(
        self,
        image: Source | Image | npt.NDArray[np.uint8],
        concepts: Sequence[str] | Mapping[str, Any] | ConceptList,
        floor: float = 0.1,
    ) -> LabeledImage:
        """Find objects in an image: a file, a Pillow image, or uint8 [H, W, 3] in RGB.

        Every class takes what scores at least `floor`, or its own conf where that is higher and you gave one.
        """
        from dataclasses import replace

        from sam3label.run.decide import select_labels

        if self._model is None:
            raise ValueError("this detector is closed: make another one")
        asked = concepts_from(concepts)
        if not isinstance(concepts, ConceptList | Mapping):  # names alone: no threshold but the floor
            asked = ConceptList(tuple(replace(concept, conf=floor) for concept in asked.concepts))
        frame = _frame(image)
        prompts = [Prompt(phrase, phrase) for phrase in asked.phrases]
        found = self._model.detect([frame], prompts, floor)[0]
        return LabeledImage(frame.item, frame.size_hw, tuple(select_labels(found.candidates, asked)))


def _frame(image: Source | Image | npt.NDArray[np.uint8]) -> Frame:
    import numpy as np
    from PIL import Image, ImageOps

    from sam3label.media.image import decode_image

    if isinstance(image, str | Path):
        return Frame(MediaItem(Path(image).name, str(image)), 0, decode_image(str(image)))
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return Frame(MediaItem("image", ""), 0, image)
