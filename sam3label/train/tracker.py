"""Training SAM 3's tracker: objects' masks in the first frame of a clip, their masks in the others, through the memory
that it has when it tracks.

The clips run through the very parts that track (`transformers`' Sam3VideoModel), frame by frame, with gradients, all
objects of all clips at once. What is remembered of a frame is the truth or, as in earnest, the tracker's own mask: a
coin decides for each object and frame. Some frames are corrected, as where `recondition_on_trk_masks` is off: a
detection takes the place of the mask, and the frame is remembered like the first one. The detector with its image
encoder stays as it is.

Shape legend: T frames, N objects of a clip, R objects of all clips, X the model's input side, h x w mask logits.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3label.train.detector import Precision, autocast
from sam3label.train.losses import dice_loss, mask_focal_loss

FULL, NONE = 10.0, -10.0  # logits of a mask that is known


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip and the objects to follow, all of which are seen in its first frame."""

    pixels: Tensor  # [T, 3, X, X], normalised
    masks: Tensor  # [T, N, X, X], visible parts, 0 or 1
    drawn: Tensor | None = None  # [T, N, X, X], what a detector makes of it, first frame and corrections; None: truth

    def __post_init__(self) -> None:
        if self.masks.dim() != 4 or len(self.masks) != len(self.pixels) or not self.masks.shape[1]:
            raise ValueError(f"masks must be ({len(self.pixels)}, N > 0, X, X), got {tuple(self.masks.shape)}")
        if not self.masks[0].flatten(1).any(1).all():
            raise ValueError("every object must be seen in the first frame")


@dataclass(frozen=True, slots=True)
class Tracked:
    """What the tracker says of one frame after the first: logits [R, h, w], and [R] of whether it sees the object."""

    masks: Tensor
    seen: Tensor


def trained_parts(video: Any) -> Iterator[nn.Parameter]:
    """Yield the tracker's weights and its neck's; all others are frozen."""
    video.requires_grad_(False)
    for part in (video.tracker_model, video.tracker_neck):
        part.requires_grad_(True)
        yield from part.parameters()


def follow(video: Any, clips: Sequence[Clip], remember_own: Tensor, corrected: Collection[int] = ()) -> list[Tracked]:
    """Track the objects from frame 1 on. Where `remember_own` (bool [T, R]), the own mask is what is remembered.

    In the frames `corrected` it is the mask that is drawn of an object, if any is.
    """
    tracker, session, found = video.tracker_model, _session(), list[Tracked]()
    pixels = torch.stack([clip.pixels for clip in clips], dim=1)  # [T, clips, 3, X, X]
    with torch.no_grad():
        hidden = video.detector_model.vision_encoder.backbone(pixels.flatten(0, 1)).last_hidden_state
    hidden = hidden.unflatten(0, pixels.shape[:2])
    clip_of = torch.cat([torch.full((clip.masks.shape[1],), k) for k, clip in enumerate(clips)])
    drawn = torch.cat([clip.masks if clip.drawn is None else clip.drawn for clip in clips], dim=1)
    given = drawn[0]
    with _in_rows(tracker) as raw:
        for frame in range(len(pixels)):
            features, places = video.get_vision_features_for_tracker(SimpleNamespace(last_hidden_state=hidden[frame]))
            # an object is a row, as if it had a video of its own
            features, places = ([level[:, clip_of] for level in levels] for levels in (features, places))
            session.cache.cache_vision_features(frame, {"vision_feats": features, "vision_pos_embeds": places})
            output = _track(tracker, session, frame, given[:, None] if frame == 0 else None)
            if frame == 0:
                known = given * (FULL - NONE) + NONE
            else:
                one = Tracked(raw.pop()[:, 0, 0].float(), output["object_score_logits"].flatten().float())
                found.append(one)
                size = one.masks.shape[-2:]
                own = output["pred_masks"][:, 0].detach().float()
                if frame in corrected:
                    known = _corrected(own, _cover(drawn[frame], size))
                    _move_to_conditioning(session, frame)
                else:
                    truth = _cover(torch.cat([clip.masks[frame] for clip in clips]), size) * (FULL - NONE) + NONE
                    known = torch.where(remember_own[frame, :, None, None], own, truth)
            _remember(tracker, session, frame, features[-1], known)
    return found


@contextmanager
def _in_rows(tracker: Any) -> Iterator[list[Tensor]]:
    """Lets the tracker take many objects at once, as rows of a batch; the list gets the mask decoder's logits.

    The library's loop has one object at a time: after memory attention it takes [1, R, ...] for [R, 1, ...]. And it
    makes masks of objects that it believes hidden empty, from which none could learn.
    """
    raw = list[Tensor]()
    hooks = (
        tracker.memory_attention.register_forward_hook(lambda _module, _inputs, output: output.transpose(0, 1)),
        tracker.mask_decoder.register_forward_hook(lambda _module, _inputs, output: raw.append(output[0])),
    )
    try:
        yield raw
    finally:
        for hook in hooks:
            hook.remove()


class _LongVideo:
    """Stands in for the session's list of preprocessed frames, which nobody reads here, only its length.

    Short clips' pointers are encoded differently; in earnest most clips are long.
    """

    def __len__(self) -> int:
        return sys.maxsize


def _session() -> Any:
    """Return a session of a long video with one object, which stands for all."""
    from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

    session = Sam3VideoInferenceSession(dtype=torch.float32)
    session.processed_frames = _LongVideo()
    session.obj_id_to_idx(0)
    return session


def _track(tracker: Any, session: Any, frame: int, given: Tensor | None) -> dict[str, Tensor]:
    """Track all objects into one frame, kept in the session as tracking does. `given` [R, 1, X, X]: they begin here."""
    output: dict[str, Tensor] = tracker._run_single_frame_inference(
        inference_session=session,
        frame_idx=frame,
        obj_idx=0,
        batch_size=1,
        is_init_cond_frame=given is not None,
        point_inputs=None,
        mask_inputs=given,
        reverse=False,
    )
    output["object_pointer"] = output["object_pointer"][:, :1]  # given masks: [R, R, D], the same for all "seen" flags
    session.store_output(0, frame, output_value=output, is_conditioning_frame=given is not None)
    return output


def _remember(tracker: Any, session: Any, frame: int, features: Tensor, known: Tensor) -> None:
    """Keep spatial memories of the masks `known`, logits [R, h, w], as the video model makes them."""
    logits = known[:, None]
    seen = torch.where((logits > 0).any(dim=(-1, -2)), FULL, NONE)
    memories, places = tracker._encode_new_memory(features, logits, seen[..., None], is_mask_from_pts=frame == 0)
    for outputs in session.output_dict_per_obj[0].values():
        if frame in outputs:
            outputs[frame]["maskmem_features"], outputs[frame]["maskmem_pos_enc"] = memories, places


def _corrected(own: Tensor, drawn: Tensor) -> Tensor:
    """Return what is remembered where a detection covers `drawn` of each cell: logits of 0 and 1, as the library's."""
    mask = (drawn >= 0.5).float()
    return torch.where(mask.flatten(1).any(1)[:, None, None], mask, own)


def _move_to_conditioning(session: Any, frame: int) -> None:
    outputs = session.output_dict_per_obj[0]
    outputs["cond_frame_outputs"][frame] = outputs["non_cond_frame_outputs"].pop(frame)


def _cover(masks: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Return the share of each mask cell that the masks [R, X, X] cover, [R, h, w]."""
    return F.interpolate(masks[None].float(), size_hw, mode="area")[0]


def loss(clips: Sequence[Clip], found: list[Tracked]) -> Tensor:
    """Return the loss: mask focal 20, dice 1, being seen at all 1; hidden objects have no mask to learn.

    Masks are compared at the model's input side, enlarged as they will be for the frame: an edge may lie within a cell.
    """
    total = clips[0].pixels.new_zeros(())
    for frame, one in enumerate(found, start=1):
        truth = torch.cat([clip.masks[frame] for clip in clips]).float()
        seen = truth.flatten(1).any(1)
        total = total + F.binary_cross_entropy_with_logits(one.seen, seen.float())
        if seen.any():
            truth = truth[seen]
            masks = F.interpolate(one.masks[seen][None], truth.shape[-2:], mode="bilinear", align_corners=False)[0]
            total = total + 20 * mask_focal_loss(masks, truth).mean() + dice_loss(masks, truth).mean()
    return total / max(len(found), 1)


@torch.no_grad()
def begin(video: Any, pixels: Tensor) -> None:
    """Draw fresh weights from which a small tracker learns; the library's, made for a width of 1,024, stall it.

    The neck is the detector's, scaled by its answer to some `pixels` [B, 3, X, X]. Memory attention begins by looking
    at each cell's own place in the frames before, so that what is remembered of a mask arrives at all.
    """
    tracker, neck = video.tracker_model, video.tracker_neck
    for module in tracker.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    neck.load_state_dict(video.detector_model.vision_encoder.neck.state_dict())
    cells = video.detector_model.vision_encoder.backbone(pixels).last_hidden_state
    levels, _ = neck(cells.transpose(1, 2).unflatten(2, tracker.prompt_encoder.image_embedding_size))
    for layer, level in zip(neck.fpn_layers, levels, strict=True):
        layer.proj2.weight /= level.std()
        layer.proj2.bias /= level.std()
    encoder = tracker.memory_encoder
    encoder.mask_downsampler.final_conv.weight *= 3
    for block in encoder.memory_fuser.layers:
        nn.init.constant_(block.scale, 0.5)
    for layer in tracker.memory_attention.layers:
        for proj in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
            proj.weight *= 0.3
            for axis in proj.bias.chunk(2):  # rotary: x in the first half, y in the second, fine steps first
                axis[:8] = 3.0
    nn.init.constant_(tracker.mask_decoder.pred_obj_score_head.proj_out.bias, 2.0)  # most objects are to be seen


class TrackerTrainer:
    """AdamW on the tracker's weights, gradients clipped at 1; dropout stays off.

    Clips run through the model in bfloat16 where that is fast (`precision`), losses are always in float32.
    """

    def __init__(self, video: Any, rate: float = 1e-3, seed: int = 0, precision: Precision = "auto") -> None:
        self.video = video.eval()
        self.precision = precision
        self.weights = list(trained_parts(video))
        self.optimizer = torch.optim.AdamW(self.weights, rate, weight_decay=0.01)
        self.coin = torch.Generator().manual_seed(seed)

    def step(self, clips: Sequence[Clip], rate: float, own: float = 0.5, corrected: float = 0.0) -> float:
        """Take one step with some clips, and return their loss.

        `own`: share of masks remembered as they were tracked; `corrected`: of frames that a detection corrects.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        rows = sum(clip.masks.shape[1] for clip in clips)
        remember_own = torch.rand(len(clips[0].pixels), rows, generator=self.coin) < own
        with autocast(clips[0].pixels.device, self.precision):
            frames = torch.rand(len(clips[0].pixels), generator=self.coin) < corrected
            found = follow(self.video, clips, remember_own, frames.nonzero().flatten().tolist())
        one = loss(clips, found)
        one.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return float(one.detach())
