"""sam3label: folders of images and videos in, a training set that survives the trainer out.

    import sam3label as sl

    run = sl.label("photos", {"helmet": ["hard hat"]}, out="runs/site-a")
    run.export("yolo", "datasets/site-a", split={"train": 0.8, "val": 0.2})

These names are all that is promised. They are imported when they are first used, so `import sam3label` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3label.errors import Sam3LabelError as Sam3LabelError
    from sam3label.face import Concepts as Concepts
    from sam3label.face import ask as ask
    from sam3label.face import check as check
    from sam3label.face import convert_weights as convert_weights
    from sam3label.face import demo_photos as demo_photos
    from sam3label.face import demo_verified as demo_verified
    from sam3label.face import demo_videos as demo_videos
    from sam3label.face import doctor as doctor
    from sam3label.face import evaluate as evaluate
    from sam3label.face import finetune as finetune
    from sam3label.face import history as history
    from sam3label.face import init as init
    from sam3label.face import label as label
    from sam3label.face import mask_boxes as mask_boxes
    from sam3label.face import open_run as open_run
    from sam3label.face import preview as preview
    from sam3label.face import validate_dataset as validate_dataset
    from sam3label.face import weights as weights
    from sam3label.image_detector import ImageDetector as Detector
    from sam3label.labelled_run import LabeledRun as Run
    from sam3label.labelling.options import LabelOptions as LabelOptions

__all__ = [
    "Concepts",
    "Detector",
    "LabelOptions",
    "Run",
    "Sam3LabelError",
    "__version__",
    "ask",
    "check",
    "convert_weights",
    "demo_photos",
    "demo_verified",
    "demo_videos",
    "doctor",
    "evaluate",
    "finetune",
    "history",
    "init",
    "label",
    "mask_boxes",
    "open_run",
    "preview",
    "validate_dataset",
    "weights",
]

_ELSEWHERE = {  # what is not called in `sam3label.face` as it is here
    "Detector": ("sam3label.image_detector", "ImageDetector"),
    "LabelOptions": ("sam3label.labelling.options", "LabelOptions"),
    "Run": ("sam3label.labelled_run", "LabeledRun"),
    "Sam3LabelError": ("sam3label.errors", "Sam3LabelError"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("sam3label")
    if name not in __all__:
        raise AttributeError(f"module 'sam3label' has no attribute {name!r}")
    module, own_name = _ELSEWHERE.get(name, ("sam3label.face", name))
    return getattr(importlib.import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
