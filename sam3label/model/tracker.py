"""SAM 3 on video: frames in, objects that keep their identity out, in memory that does not grow with the clip.

The parts of `transformers`' Sam3VideoModel do the work, in the order of its own offline loop: an object may be taken
back within `hotstart_delay` frames after its birth, so a frame is given out only when that time has passed. What is
done differently, and why:

- frames are read as they are needed and forgotten, and the session's memory is pruned to what the model reads again
- all prompts share one encoding of the frame, in the form the model was trained with (see `model`)
- duplicates and small holes are removed by the functions here: the library's need code fetched at run time, and are
  skipped without it
- in the frame in which an object is taken back, the library gives other objects' masks to the wrong ids; not here

Shape legend: P prompts, N objects, K detections, h x w mask logits, H x W the frame.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.core import masks
from sam3label.core.records import Frame, Prompt
from sam3label.model import mask_runs
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.detector import Detector
from sam3label.model.mask_runs import Instance
from sam3label.model.weights import load_video_model


@dataclass(frozen=True, slots=True)
class TrackedObject:
    """One object in one frame. `number` is its identity within the clip; both scores are in [0, 1]."""

    number: int
    prompt: int  # place among the prompts
    score: float  # of the detection it was born from
    track_score: float  # of the tracker in this frame
    instance: Instance


@dataclass(frozen=True, slots=True)
class TrackedFrame:
    """One frame of a clip. `presence` float32 [P] in the order of the prompts."""

    frame: Frame
    presence: npt.NDArray[np.float32]
    objects: tuple[TrackedObject, ...]


@dataclass(slots=True)
class _Pending:
    """A frame that is worked on, or waits for the end of its hotstart."""

    frame: Frame
    presence: npt.NDArray[np.float32]
    ids: list[int] = field(default_factory=list)  # objects tracked into this frame, in the order of the tracker's rows
    track_scores: dict[int, float] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    prompts: Mapping[int, int] = field(default_factory=dict)
    masks: Mapping[int, Tensor] = field(default_factory=dict)  # object -> logits [1, h, w]
    suppressed: frozenset[int] = frozenset()


class Window:
    """Stands in for the session's list of all preprocessed frames: holds the one at hand.

    The model asks for its length too: clips with fewer frames than it has object pointers are encoded differently.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.pixels = torch.empty(0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, _index: int) -> Tensor:
        return self.pixels


class Tracker:
    """A loaded SAM 3 video model, sharing its detector with photos. Tracks one clip at a time."""

    def __init__(self, video: Any, detector: Detector) -> None:
        self.detector = detector
        self._video = video
        self._hole_area: int = video.fill_hole_area
        self._propagate_rows = video.run_tracker_propagation
        video.fill_hole_area = 0  # ours does it
        video.detector_model = detector.model
        video.tracker_neck.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
        widen_pointers(video)
        video.run_detection = self._detect
        video.run_tracker_propagation = self._propagate
        video.build_outputs = self._outputs

    @classmethod
    def load(cls, checkpoint: Checkpoint, detector: Detector) -> Tracker:
        """Load the tracker beside a detector of the same checkpoint. Raises CheckpointError if it has none."""
        video = load_video_model(checkpoint)
        video.detector_model = detector.model  # before the move: its own copy of the detector is not needed
        return cls(video.to(detector.device), detector)

    @torch.inference_mode()
    def track(self, frames: Iterable[Frame], prompts: Sequence[Prompt]) -> Iterator[TrackedFrame]:
        """Track every prompt's objects through the frames of one clip, all of one size.

        Frames come out in order, `hotstart_delay` of them late. An error while reading `frames` passes through after
        the frames before it have come out.
        """
        source, first, failure = _until_failure(frames, self._pointers)
        session = self._session(len(first))
        waiting: deque[_Pending] = deque()
        removed: set[int] = set()
        for index, frame in enumerate(chain(first, source)):
            waiting.append(self._step(session, index, frame, prompts))
            removed |= session.removed_obj_ids
            if len(waiting) >= max(self._video.hotstart_delay, 1):
                yield self._finish(waiting.popleft(), removed)
        while waiting:
            yield self._finish(waiting.popleft(), removed)
        if failure:
            raise failure[0]

    @property
    def _pointers(self) -> int:
        return int(self._video.config.tracker_config.max_object_pointers_in_encoder)

    def _session(self, n_first: int) -> Any:
        from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

        device = self.detector.device
        session = Sam3VideoInferenceSession(
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        session.processed_frames = Window(n_first if n_first < self._pointers else sys.maxsize)
        return session

    def _step(self, session: Any, index: int, frame: Frame, prompts: Sequence[Prompt]) -> _Pending:
        pending = _Pending(frame, np.full(len(prompts), np.nan, np.float32))
        session.pending, session.asked = pending, prompts
        session.processed_frames.pixels = self.detector.preprocess([frame])[0].to(self.detector.dtype)
        with self.detector.precision():
            output = self._video(inference_session=session, frame_idx=index)
        pending.masks = output.obj_id_to_mask
        pending.scores = output.obj_id_to_score
        pending.prompts = {number: session.obj_id_to_prompt_id[number] for number in output.obj_id_to_mask}
        pending.suppressed = frozenset(output.suppressed_obj_ids)
        _forget(session, index, self._video.config.tracker_config)
        return pending

    # ---- in place of the library's methods of the same work

    def _detect(self, inference_session: Any, vision_embeds: Any) -> dict[int, dict[str, Tensor]]:
        """Detections of every prompt on the frame at hand, without duplicates."""
        state = self.detector.state_of(vision_embeds.fpn_hidden_states[:3])
        found = {}
        seen = self.detector.look(state, inference_session.asked, self._video.score_threshold_detection)
        for number, one in enumerate(seen):
            inference_session.pending.presence[number] = one.presence
            kept = keep_best(one.masks, one.scores, self._video.det_nms_thresh)
            scores, logits = one.scores[kept], one.masks[kept]
            found[number] = {"bbox": scores, "mask": logits, "scores": scores}  # of the boxes only the number is read
        return found

    def _propagate(self, inference_session: Any, frame_idx: int, reverse: bool) -> tuple[Tensor, Tensor]:
        """The tracker's masks [N, h, w] and score logits [N] of the objects so far."""
        ids = list(inference_session.obj_ids)
        logits, scores = self._propagate_rows(inference_session, frame_idx, reverse)
        pending = inference_session.pending
        pending.ids = ids
        pending.track_scores = dict(zip(ids, scores.float().sigmoid().flatten().tolist(), strict=True))
        return clean_masks(logits.float(), self._hole_area), scores

    def _outputs(
        self,
        inference_session: Any,
        det_out: Mapping[str, Tensor],
        tracker_low_res_masks_global: Tensor,
        tracker_update_plan: Mapping[str, Any],
        reconditioned_obj_ids: Iterable[int] | None = None,
    ) -> dict[int, Tensor]:
        """Each object's mask in this frame: the tracker's, or the detection's where it is new or was just confirmed."""
        pending, plan = inference_session.pending, tracker_update_plan
        rows = zip(pending.ids, tracker_low_res_masks_global, strict=True)
        found = {number: row[None] for number, row in rows if number not in plan["obj_ids_newly_removed"]}
        born = det_out["mask"][plan["new_det_out_inds"]]
        scores = det_out["scores"][plan["new_det_out_inds"]].tolist()
        pending.track_scores.update(zip(plan["new_det_obj_ids"], scores, strict=True))
        found.update(zip(plan["new_det_obj_ids"], clean_masks(born, self._hole_area)[:, None], strict=True))
        for number in set(reconditioned_obj_ids or ()) - plan["obj_ids_newly_removed"]:
            found[number] = det_out["mask"][plan["trk_id_to_max_iou_high_conf_det"][number]][None]
        return found

    # ---- giving out

    def _finish(self, pending: _Pending, removed: set[int]) -> TrackedFrame:
        """Masks at the frame's size, without overlap among the objects of one prompt: the better tracked one wins."""
        shown = [number for number in sorted(pending.masks) if number not in removed | pending.suppressed]
        found: list[Instance | None] = []
        if shown:
            logits = torch.cat([pending.masks[number] for number in shown]).float()
            found = mask_runs.instances(logits, pending.frame.size_hw)
        objects = [
            TrackedObject(number, pending.prompts[number], pending.scores[number], pending.track_scores[number], one)
            for number, one in zip(shown, found, strict=True)
            if one is not None
        ]
        return TrackedFrame(pending.frame, pending.presence, tuple(_apart(objects)))


def _until_failure(frames: Iterable[Frame], n: int) -> tuple[Iterator[Frame], list[Frame], list[Exception]]:
    """The rest of the frames, the first `n`, and a list that gets the error that ended them early."""
    failure: list[Exception] = []

    def guarded() -> Iterator[Frame]:
        try:
            yield from frames
        except Exception as error:
            failure.append(error)

    source = guarded()
    return source, list(islice(source, n)), failure


def _apart(objects: Sequence[TrackedObject]) -> Iterator[TrackedObject]:
    """Objects of one prompt take nothing from those of a better tracker score. What has no pixel left is dropped."""
    for one in objects:
        better = [
            other.instance.rle
            for other in objects
            if other.prompt == one.prompt and (-other.track_score, other.number) < (-one.track_score, one.number)
        ]
        if not masks.iou_matrix([one.instance.rle], better).any():
            yield one
            continue
        left = masks.difference(one.instance.rle, masks.union(better))
        if area := masks.area(left):
            instance = Instance(left, masks.box_xywh(left), area)
            yield TrackedObject(one.number, one.prompt, one.score, one.track_score, instance)


def _forget(session: Any, now: int, config: Any) -> None:
    """Drop from the session what no later frame reads, once frame `now` is done. Changes no output.

    The tracker reads spatial memories of the last `num_maskmem - 1` frames and of the last `max_cond_frame_num`
    conditioning frames, object pointers of the last `max_object_pointers_in_encoder - 1` frames and of every
    conditioning frame; full masks only within the frame.
    """
    pointers_from = now + 2 - config.max_object_pointers_in_encoder
    memories_from = now + 2 - config.num_maskmem
    for outputs in session.output_dict_per_obj.values():
        recent, anchors = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        for frame in [frame for frame in recent if frame < pointers_from]:
            del recent[frame]
        kept = sorted(anchors)[-config.max_cond_frame_num :] if config.max_cond_frame_num > 0 else list(anchors)
        for frame, output in chain(recent.items(), anchors.items()):
            output.pop("high_res_masks", None)
            output.pop("pred_masks", None)
            if frame < memories_from and not (frame in kept and frame in anchors):
                output.pop("maskmem_features", None)
                output.pop("maskmem_pos_enc", None)
        if now in anchors:  # these stay long, and are views of what was computed for all objects together
            anchors[now].update((k, anchors[now][k].clone()) for k in ("maskmem_features", "maskmem_pos_enc"))
    for by_frame in (*session.frames_tracked_per_obj.values(), session.suppressed_obj_ids):
        by_frame.clear()
    for by_frame in session.mask_inputs_per_obj.values():
        by_frame.clear()
    session.obj_id_to_tracker_score_frame_wise.clear()


def widen_pointers(video: Any) -> None:
    """Let a tracker run that is as narrow as its memory (64), as small ones are.

    The library splits object pointers into pieces as wide as the memory, and forgets to drop an axis where one piece is
    the whole. Pointers [S, B, 1, D] become [S, B, D].
    """
    process = video.tracker_model._process_object_pointers

    def pointers(*args: Any, **kwargs: Any) -> Any:
        tokens, places = process(*args, **kwargs)
        return (tokens.squeeze(2) if tokens is not None and tokens.dim() == 4 else tokens), places

    video.tracker_model._process_object_pointers = pointers


# ---- duplicates and holes


def keep_best(logits: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Places, ascending, of the masks [K, h, w] that remain when each removes worse ones overlapping it by over `iou`.

    `iou` 0 removes nothing, as in the model's config. Overlap is of logits over 0; equal scores: the first is kept.
    """
    if iou <= 0 or len(logits) < 2:
        return torch.arange(len(logits), device=logits.device)
    inside = (logits > 0).flatten(1).float()
    with torch.autocast(logits.device.type, enabled=False):  # counts of pixels, which bf16 would round
        shared = inside @ inside.T
    area = inside.sum(1)
    overlap = (shared / (area[:, None] + area - shared).clamp(min=1)).cpu().numpy()
    kept: list[int] = []
    for place in np.argsort(-scores.float().cpu().numpy(), kind="stable").tolist():
        if not (overlap[place, kept] > iou).any():
            kept.append(place)
    return torch.tensor(sorted(kept), device=logits.device)


FILLED, CLEARED = 0.1, -0.1


def clean_masks(logits: Tensor, max_area: int) -> Tensor:
    """Logits [N, h, w] with holes of up to `max_area` pixels filled and specks of up to that many cleared.

    Pixels that touch at a corner belong together. An object of no more than twice `max_area` keeps parts that are over
    half of it, so small objects stay. As the model was built to have its masks cleaned.
    """
    if max_area <= 0 or len(logits) == 0:
        return logits
    inside = (logits > 0).cpu().numpy()
    holes = np.stack([_small_parts(~mask, max_area) for mask in inside])
    inside |= holes
    specks = np.stack([_small_parts(mask, min(max_area, int(mask.sum()) // 2)) for mask in inside])
    filled = torch.where(torch.from_numpy(holes).to(logits.device), FILLED, logits)
    return torch.where(torch.from_numpy(specks).to(logits.device), CLEARED, filled)


def _small_parts(mask: npt.NDArray[np.bool_], max_area: int) -> npt.NDArray[np.bool_]:
    """The connected parts of a mask with at most `max_area` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= max_area
    small[0] = False  # what is not in the mask
    found: npt.NDArray[np.bool_] = small[labels]
    return found
