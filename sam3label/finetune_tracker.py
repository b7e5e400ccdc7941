"""Training SAM 3's tracker: objects' masks in the first frame of a clip, their masks in the others, through the memory
that it has when it tracks.

The clip runs through the very parts that track (`transformers`' Sam3VideoModel), frame by frame, with gradients. What
is remembered of a frame is the truth or, as in earnest, the tracker's own mask: a coin decides for each frame. The
detector with its image encoder stays as it is.

Shape legend: T frames, N objects, X the model's input side, h x w mask logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3label.losses import dice_loss, mask_focal_loss
from sam3label.video import widen_pointers

FULL, NONE = 10.0, -10.0  # logits of a mask that is known


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip and the objects to follow, all of which are seen in its first frame."""

    pixels: Tensor  # [T, 3, X, X], normalised
    masks: Tensor  # [T, N, X, X], visible parts, 0 or 1

    def __post_init__(self) -> None:
        if self.masks.dim() != 4 or len(self.masks) != len(self.pixels) or not self.masks.shape[1]:
            raise ValueError(f"masks must be ({len(self.pixels)}, N > 0, X, X), got {tuple(self.masks.shape)}")
        if not self.masks[0].flatten(1).any(1).all():
            raise ValueError("every object must be seen in the first frame")


@dataclass(frozen=True, slots=True)
class Tracked:
    """What the tracker says of one frame after the first: logits [N, h, w], and [N] of whether it sees the object."""

    masks: Tensor
    seen: Tensor


def trained_parts(video: Any) -> Iterator[nn.Parameter]:
    """The tracker's weights and its neck's; all others are frozen."""
    video.requires_grad_(False)
    for part in (video.tracker_model, video.tracker_neck):
        part.requires_grad_(True)
        yield from part.parameters()


def follow(video: Any, clip: Clip, remember_own: Tensor) -> list[Tracked]:
    """Track the objects from frame 1 on. Of frames where `remember_own` (bool [T]) the own masks are remembered."""
    tracker, session, found = video.tracker_model, _session(clip), list[Tracked]()
    with torch.no_grad():
        hidden = video.detector_model.vision_encoder.backbone(clip.pixels).last_hidden_state
    numbers = range(clip.masks.shape[1])
    for frame in range(len(clip.pixels)):
        features, places = video.get_vision_features_for_tracker(SimpleNamespace(last_hidden_state=hidden[frame, None]))
        session.cache.cache_vision_features(frame, {"vision_feats": features, "vision_pos_embeds": places})
        outputs = [_one(tracker, session, clip, frame, number) for number in numbers]
        if frame == 0:
            tracker._batch_encode_memories(
                session,
                0,
                list(numbers),
                [output["high_res_masks"] for output in outputs],
                [output["object_score_logits"] for output in outputs],
                [True] * len(outputs),
            )
            continue
        masks = torch.cat([output["pred_masks"] for output in outputs])[:, 0]
        found.append(Tracked(masks, torch.cat([output["object_score_logits"] for output in outputs]).flatten()))
        known = masks.detach() if remember_own[frame] else _truth(clip, frame, masks.shape[-2:]) * (FULL - NONE) + NONE
        _remember(tracker, session, frame, features[-1], known)
    return found


def _session(clip: Clip) -> Any:
    from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

    device = clip.pixels.device
    session = Sam3VideoInferenceSession(clip.pixels, inference_device=device, inference_state_device=device,
                                        video_storage_device=device, dtype=torch.float32)  # fmt: skip
    for number in range(clip.masks.shape[1]):
        session.obj_id_to_idx(number)
    return session


def _one(tracker: Any, session: Any, clip: Clip, frame: int, number: int) -> dict[str, Tensor]:
    """One object in one frame, kept in the session as tracking keeps it."""
    output: dict[str, Tensor] = tracker._run_single_frame_inference(
        inference_session=session,
        frame_idx=frame,
        obj_idx=number,
        batch_size=1,
        is_init_cond_frame=frame == 0,
        point_inputs=None,
        mask_inputs=clip.masks[0, number][None, None] if frame == 0 else None,
        reverse=False,
    )
    session.store_output(number, frame, output_value=output, is_conditioning_frame=frame == 0)
    return output


def _remember(tracker: Any, session: Any, frame: int, features: Tensor, known: Tensor) -> None:
    """Spatial memories of all objects' masks `known`, logits [N, h, w], as the video model makes them."""
    logits = known[:, None]
    seen = torch.where((logits > 0).any(dim=(-1, -2)), FULL, NONE)
    memories, places = tracker._encode_new_memory(features, logits, seen[..., None], is_mask_from_pts=False)
    for number in range(len(known)):
        output = session.output_dict_per_obj[number]["non_cond_frame_outputs"][frame]
        output["maskmem_features"] = memories[:, number : number + 1]
        output["maskmem_pos_enc"] = places[:, number : number + 1]


def _truth(clip: Clip, frame: int, size_hw: tuple[int, ...]) -> Tensor:
    """The share of each mask cell that the object covers, [N, h, w]."""
    return F.interpolate(clip.masks[frame][None].float(), size_hw, mode="area")[0]


def loss(clip: Clip, found: list[Tracked]) -> Tensor:
    """Mask focal 20, dice 1 and whether the object is seen at all 1; hidden objects have no mask to learn."""
    total = clip.pixels.new_zeros(())
    for frame, one in enumerate(found, start=1):
        truth = (_truth(clip, frame, one.masks.shape[-2:]) > 0.5).float()
        seen = truth.flatten(1).any(1)
        total = total + F.binary_cross_entropy_with_logits(one.seen, seen.float())
        if seen.any():
            masks, truth = one.masks[seen], truth[seen]
            total = total + 20 * mask_focal_loss(masks, truth).mean() + dice_loss(masks, truth).mean()
    return total / max(len(found), 1)


class TrackerTrainer:
    """AdamW on the tracker's weights, a clip at a time, gradients clipped at 1; dropout stays off."""

    def __init__(self, video: Any, rate: float = 1e-3, seed: int = 0) -> None:
        self.video = video.eval()
        self.weights = list(trained_parts(video))
        widen_pointers(video)
        # the library hands a score under 0 on as an empty mask, from which no mask can learn: begin by seeing
        nn.init.constant_(video.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias, 2.0)
        self.optimizer = torch.optim.AdamW(self.weights, rate, weight_decay=0.01)
        self.coin = torch.Generator().manual_seed(seed)

    def step(self, clips: list[Clip], rate: float, own: float = 0.5) -> float:
        """One update by the mean loss of some clips, which is returned. `own`: share of frames remembered as seen."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for clip in clips:
            remember_own = torch.rand(len(clip.pixels), generator=self.coin) < own
            one = loss(clip, follow(self.video, clip, remember_own)) / len(clips)
            one.backward()  # type: ignore[no-untyped-call]
            total += float(one.detach())
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return total
