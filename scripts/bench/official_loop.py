"""Meta's own video loop on scripted detections and answers of the tracker, and what it decides. Installed by hand.

    pip install git+https://github.com/facebookresearch/sam3    # or a checkout, named by --official; it needs timm too

What runs is Meta's: `add_prompt` and `propagate_in_video`, matching, births, removals, reconditioning, and the tracker
with all of its modules, built by `build_tracker`. What stands in, because it needs CUDA or is scripted:

- `Tensor.cuda` and `Tensor.pin_memory` do nothing, a tracker's state lies on the CPU, the device that is named "cuda"
  in it being the CPU; connected parts of an empty batch are an empty batch, as they are on CUDA;
- the detector and the image encoder: `run_backbone_and_detection` gives scripted detections and random features;
- the mask decoder's masks, scores and expected IoUs of tracked objects are scripted; its tokens, and all that it says
  of a given mask, are its own;
- the tracker is that of full size but for 8 x 8 cells of a frame (there 72 x 72) and one layer of memory attention (4).
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from scripted_tracks import Found, Story
from torch import Tensor
from torch.overrides import TorchFunctionMode

GRID, STRIDE = 8, 14  # cells a side, pixels of a cell
SIDE = 4 * GRID  # of a mask
LAYERS = 1  # of memory attention
SIZE_HW = (45, 60)
COND, OTHER = "cond_frame_outputs", "non_cond_frame_outputs"

Moment = tuple[int, int]  # frame, pass over it
Features = tuple[Tensor, Tensor, Tensor, Tensor]  # fine, middle, coarse, places of coarse: [1, C, side, side]


@dataclass
class Reading:
    """What is remembered of an object that is looked for: frames, (distance, frame)s, tokens and places [L, M]."""

    memories: list[int] = field(default_factory=list)
    pointers: list[tuple[int, int]] = field(default_factory=list)
    tokens: Tensor | None = None
    places: Tensor | None = None


@dataclass
class Decided:
    """What a loop decides of a phrase in a pass over a frame, by the phrase's own numbers of its objects."""

    born: tuple[int, ...] = ()  # detections
    matched: frozenset[tuple[int, int]] = frozenset()  # (detection, object)
    unmatched: frozenset[int] = frozenset()
    sure: frozenset[tuple[int, int]] = frozenset()  # (object, detection)
    reconditioned: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()  # not given out, for want of detections
    emptied: frozenset[int] = frozenset()  # for overlap with one that was hidden less recently
    unconfirmed: frozenset[int] = frozenset()
    frames: dict[int, dict[int, bool]] = field(default_factory=dict)  # object -> frame -> is it a conditioning one
    reads: dict[int, Reading] = field(default_factory=dict)


@dataclass
class Telling:
    """What a loop decides of a phrase, by moment, and gives out, by frame and object: bool [H, W]."""

    decided: dict[Moment, Decided] = field(default_factory=lambda: defaultdict(Decided))
    shown: dict[int, dict[int, npt.NDArray[np.bool_]]] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def why_not(path: Path | None) -> str | None:
    """Say why Meta's code cannot be run, or None. A checkout at `path` is put before what is installed."""
    if path is not None:
        sys.path.insert(0, str(path))
    missing = [name for name in ("sam3", "timm", "iopath") if importlib.util.find_spec(name) is None]
    return f"Not compared: {' and '.join(missing)} not installed (official_loop.py says how)." if missing else None


class _OnCpu(TorchFunctionMode):
    """What is made on "cuda" is made on the CPU: tables of positions, when the tracker is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if str(kwargs.get("device")).startswith("cuda") else kwargs))


def build_tracker() -> Any:
    """Return Meta's tracker with fewer cells and layers. Its modules have full size."""
    with warnings.catch_warnings(), _OnCpu():
        warnings.simplefilter("ignore")
        from sam3.model_builder import build_tracker

        tracker = build_tracker(apply_temporal_disambiguation=True).eval()
    tracker.image_size, tracker.low_res_mask_size, tracker.input_mask_size = GRID * STRIDE, SIDE, 4 * SIDE
    tracker.sam_image_embedding_size = GRID
    tracker.maskmem_backbone.mask_downsampler.interpol_size = [4 * SIDE, 4 * SIDE]
    prompts = tracker.sam_prompt_encoder
    prompts.image_embedding_size, prompts.input_image_size = (GRID, GRID), (GRID * STRIDE, GRID * STRIDE)
    prompts.mask_input_size = (SIDE, SIDE)
    encoder = tracker.transformer.encoder
    encoder.layers, encoder.num_layers = encoder.layers[:LAYERS], LAYERS
    return tracker


class _ReadOutput(dict[str, Any]):
    """An output of the tracker that notes its frame when its memory or pointer is taken."""

    def __init__(self, frame: int, output: dict[str, Any], memories: list[int], pointers: list[int]) -> None:
        super().__init__(output)
        self.frame, self.taken = frame, {"maskmem_features": memories, "obj_ptr": pointers}

    def __getitem__(self, name: str) -> Any:
        if name in self.taken:
            self.taken[name].append(self.frame)
        return super().__getitem__(name)


class OfficialLoop:
    """Meta's loop for one phrase at a time, which is how it takes them."""

    def __init__(self, tracker: Any, features: Sequence[Features]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sam3.model.sam3_video_inference import Sam3VideoInferenceWithInstanceInteractivity

        self.tracker, self.features = tracker, features
        self.video: Any = Sam3VideoInferenceWithInstanceInteractivity(
            detector=torch.nn.Identity(), tracker=tracker, image_size=GRID * STRIDE, image_mean=(0.5,) * 3
        )
        self.story: Story
        self.telling: Telling
        self.moment: Moment = (0, -1)
        self.births: dict[int, tuple[int, float]] = {}
        self.asked: list[int] | None = None  # objects that the mask decoder is asked for, None if a mask is given
        self.numbers: list[int] = []  # of the litter that is at hand
        self.distances: list[int] = []

    @torch.inference_mode()
    def run(self, story: Story, settings: dict[str, Any], extras: dict[str, bool]) -> Telling:
        """Go through a video by its API."""
        from PIL import Image

        for name, value in settings.items():
            if not hasattr(self.video, name):
                raise AttributeError(name)
            setattr(self.video, name, value)
        self.video.suppress_det_close_to_boundary = extras["no_border_births"]
        self.video.masklet_confirmation_enable = extras["confirm"]
        self.story, self.telling, self.births, self.moment = story, Telling(), {}, (0, -1)
        with self._noted():
            state = self.video.init_state([Image.new("RGB", SIZE_HW[::-1])] * len(story.found))
            self.video.add_prompt(state, 0, text_str="thing")
            for frame, out in self.video.propagate_in_video(state, start_frame_idx=0):
                masks = zip(out["out_obj_ids"].tolist(), out["out_binary_masks"], strict=True)
                self.telling.shown[frame] = {number: mask for number, mask in masks if mask.any()}
        return self.telling

    # ---- what stands in, and what is noted

    @contextmanager
    def _noted(self) -> Iterator[None]:
        import sam3.perflib.connected_components as parts

        video, tracker = self.video, self.tracker
        whole = parts.connected_components_cpu
        with ExitStack() as stack:

            def around(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
                stack.enter_context(mock.patch.object(owner, name, make(getattr(owner, name))))

            for name in ("cuda", "pin_memory"):
                stack.enter_context(mock.patch.object(Tensor, name, lambda one, *_, **__: one))
            stack.enter_context(
                mock.patch.object(
                    parts, "connected_components_cpu", lambda x: whole(x) if len(x) else (x.long(), x.long())
                )
            )
            stack.enter_context(mock.patch.object(video, "run_backbone_and_detection", self._detections))
            stack.enter_context(mock.patch("sam3.model.sam3_video_inference.tqdm", lambda frames, **_: frames))
            around(video, "_det_track_one_frame", self._passed)
            around(video, "_associate_det_trk", self._associated)
            around(video, "run_tracker_update_planning_phase", self._planned)
            around(video, "_get_objects_to_suppress_based_on_most_recently_occluded", self._suppressed)
            around(tracker, "init_state", self._on_cpu)
            around(tracker, "add_new_mask", self._given)
            around(tracker, "_run_single_frame_inference", self._inferred)
            around(tracker, "_prepare_memory_conditioned_features", self._remembered)
            around(tracker, "_get_tpos_enc", self._timed)
            hooks = [
                tracker.sam_mask_decoder.register_forward_hook(self._answered, with_kwargs=True),
                tracker.transformer.encoder.register_forward_pre_hook(self._attended, with_kwargs=True),
            ]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    @property
    def _now(self) -> Decided:
        return self.telling.decided[self.moment]

    def _detections(self, frame_idx: int, feature_cache: dict[Any, Any], **_: Any) -> dict[str, Tensor]:
        fine, middle, coarse, places = self.features[frame_idx]
        feature_cache.pop(frame_idx - 1, None)
        wide = [torch.zeros((1, 1, *fine.shape[-2:])), torch.zeros((1, 1, *middle.shape[-2:])), places]
        feature_cache[frame_idx] = (
            torch.zeros((1, 3, 1, 1)),
            {"tracker_backbone_out": {"backbone_fpn": [fine, middle, coarse], "vision_pos_enc": wide}},
        )
        found: Found = self.story.found[frame_idx]
        return {"mask": found.masks.clone(), "scores": found.scores.clone(), "bbox": found.boxes_xyxy.clone()}

    def _passed(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            frame = inputs["frame_idx"]
            self.moment = (frame, self.moment[1] + 1 if frame == self.moment[0] else 0)
            out = original(**inputs)
            for state in out[2]:
                for number in state["obj_ids"]:
                    own = self._now.frames[number] = dict.fromkeys(state["output_dict"][OTHER], False)
                    own |= dict.fromkeys(state["output_dict"][COND], True)
            return out

        return wrapped

    def _associated(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            from sam3.perflib.masks_ops import mask_iou

            out = original(**inputs)
            if len(inputs["det_masks"]) and len(inputs["trk_masks"]):
                near = mask_iou(inputs["det_masks"] > 0, inputs["trk_masks"] > 0) >= self.video.assoc_iou_thresh
                self.telling.events["matches that are ambiguous"] += int(near.sum()) - sum(map(len, out[2].values()))
            self.telling.events["births kept off"] += len(out[0])  # those that remain are taken off when it is planned
            return out

        return wrapped

    def _planned(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            plan, metadata = original(**inputs)
            now, events, lives = self._now, self.telling.events, metadata["rank0_metadata"]
            now.born = tuple(plan["new_det_fa_inds"].tolist())
            for number, row in zip(plan["new_det_obj_ids"].tolist(), now.born, strict=True):
                self.births[number] = (self.moment[0], float(inputs["det_out"]["scores"][row]))
            now.matched = frozenset(
                (row, int(k)) for row, places in plan["det_to_matched_trk_obj_ids"].items() for k in places
            )
            now.unmatched = frozenset(plan["unmatched_trk_obj_ids"].tolist())
            now.sure = frozenset(plan["trk_id_to_max_iou_high_conf_det"].items())
            now.removed = frozenset(map(int, plan["obj_ids_newly_removed"]))
            now.hidden = frozenset(map(int, lives["suppressed_obj_ids"][self.moment[0]]))
            if self.video.masklet_confirmation_enable:
                numbers, confirmed = metadata["obj_ids_all_gpu"], lives["masklet_confirmation"]["status"] == 2
                now.unconfirmed = frozenset(numbers[~confirmed].tolist())
            events["births kept off"] -= len(now.born)
            events["births in the second pass"] += len(now.born) if self.moment == (0, 1) else 0
            for number in now.removed:
                alone = len(lives["unmatched_frame_inds"][number]) >= self.video.hotstart_unmatch_thresh
                events["removed as unmatched" if alone else "removed as double"] += 1
            return plan, metadata

        return wrapped

    def _suppressed(self, original: Any) -> Any:
        def wrapped(masks: Tensor, last: Any, numbers: Any, *rest: Any) -> Any:
            out = original(masks, last, numbers, *rest)
            self._now.emptied = frozenset(int(k) for k, gone in zip(numbers, out, strict=True) if gone)
            return out

        return wrapped

    def _on_cpu(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            state = original(**inputs)
            state["storage_device"] = torch.device("cpu")
            return state

        return wrapped

    def _given(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            if not inputs.get("add_mask_to_memory"):  # of births it is
                self._now.reconditioned |= {inputs["obj_id"]}
            return original(**inputs)

        return wrapped

    def _inferred(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            self.asked = None if inputs["mask_inputs"] is not None else list(inputs["inference_state"]["obj_ids"])
            return original(**inputs)

        return wrapped

    def _answered(self, _module: Any, _inputs: Any, named: dict[str, Any], output: Any) -> Any:
        if self.asked is None:
            return output
        born = {number: self.births[number] for number in self.asked}
        answers = [self.story.answer(number, *born[number], self.moment[0]) for number in self.asked]
        masks, ious, tokens, _ = output
        return (*scripted(answers, self.asked, masks, ious), tokens, torch.tensor([[one.score] for one in answers]))

    def _remembered(self, original: Any) -> Any:
        def wrapped(**inputs: Any) -> Any:
            memories: list[int] = []
            pointers: list[int] = []
            outputs = {
                kind: {frame: _ReadOutput(frame, out, memories, pointers) for frame, out in own.items()}
                for kind, own in inputs["output_dict"].items()
            }
            assert self.asked is not None
            self.numbers, self.distances = self.asked, []
            self._note_choice(inputs["output_dict"], inputs["frame_idx"])
            out = original(**{**inputs, "output_dict": outputs})
            for number in self.numbers:
                reading = self._now.reads[number]
                reading.memories = memories
                reading.pointers = list(zip(self.distances, pointers, strict=True))
            return out

        return wrapped

    def _note_choice(self, outputs: dict[str, dict[int, Any]], now: int) -> None:
        """Count what there is to choose from: more than four conditioning frames, frames too poor to be remembered."""
        tracked, events = outputs[OTHER], self.telling.events
        events["recalled by four of more conditioning frames"] += len(outputs[COND]) > 4
        poor = any(tracked[frame]["eff_iou_score"] <= 0.01 for frame in range(now - 6, now - 1) if frame in tracked)
        events["recalled past a poor frame"] += poor

    def _timed(self, original: Any) -> Any:
        def wrapped(distances: Any, *rest: Any, **named: Any) -> Any:
            self.distances = list(distances)
            return original(distances, *rest, **named)

        return wrapped

    def _attended(self, _module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        for row, number in enumerate(self.numbers):
            places = named["prompt_pos"]
            self._now.reads[number] = Reading(
                tokens=named["prompt"][:, row].float(), places=places[:, min(row, places.shape[1] - 1)]
            )


def scripted(answers: Sequence[Any], numbers: Sequence[int], masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """Return three masks [N, 3, h, w] and IoUs [N, 3] of N objects with the scripted ones as the best."""
    masks, ious = masks.clone(), ious.clone()
    for row, (one, number) in enumerate(zip(answers, numbers, strict=True)):
        best = number % 3
        ious[row] = 0.5 * one.iou
        masks[row, best], ious[row, best] = one.mask, one.iou
    return masks, ious
