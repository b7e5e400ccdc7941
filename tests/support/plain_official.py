"""The official loop restated: slow, obvious, nothing forgotten, one object and one phrase at a time.

Written from a description of facebookresearch/sam3 (July 2026), against the library's model and none of our modules for
tracking. Each phrase is a session of its own; objects born to it in one pass are a litter.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

BIG = 1024.0


@dataclass
class Out:
    pointer: torch.Tensor
    score: float
    iou: float
    low: torch.Tensor
    memory: torch.Tensor | None = None
    given: bool = False

    downgraded: bool = False

    @property
    def seen(self) -> float:
        return max(0.0, 2 / (1 + np.exp(-self.score)) - 1)


@dataclass
class Thing:
    id: int
    born: int
    litter: int
    score: float
    cond: dict[int, Out] = field(default_factory=dict)
    non: dict[int, Out] = field(default_factory=dict)
    hidden_at: int | None = None
    alive: int = 0
    unmatched: int = 0


@dataclass
class Session:
    things: list[Thing] = field(default_factory=list)
    doubled: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))


class PlainOfficial:
    """`settings` has the names of a checkpoint's config. `events` counts what happened."""

    def __init__(self, video: Any, settings: Any, phrases: int, length: int) -> None:
        self.video, self.model, self.s = video, video.tracker_model, settings
        self.sessions = [Session() for _ in range(phrases)]
        self.pointers = min(length, video.config.tracker_config.max_object_pointers_in_encoder)
        self.next_id, self.removed, self.events = 0, set[int](), defaultdict[str, int](int)
        self.low = self.model.prompt_encoder.mask_input_size[0]
        self.side = video.config.tracker_config.image_size

    def step(self, now: int, hidden: torch.Tensor, found: list[tuple[torch.Tensor, torch.Tensor]], size: Any) -> Any:
        """Masks [h, w] of the objects by id. `hidden` is the image encoder's [1, g * g, V]."""
        feats, places = self.video.get_vision_features_for_tracker(SimpleNamespace(last_hidden_state=hidden))
        self.feats, self.places = feats, places
        first = self.one_pass(now, found, size)
        if now == 0 and any(session.things for session in self.sessions):
            again = self.one_pass(now, found, size)
            first = again | {id: mask for id, mask in first.items() if id in again}
        return first

    def one_pass(self, now: int, found: list[tuple[torch.Tensor, torch.Tensor]], size: Any) -> dict[int, torch.Tensor]:
        plans = []
        for session, (masks, scores) in zip(self.sessions, found, strict=True):
            plans.append(self.plan(session, now, masks, scores))
        shown: dict[int, torch.Tensor] = {}
        for session, (masks, scores), plan in zip(self.sessions, found, plans, strict=True):
            ids = list(range(self.next_id, self.next_id + len(plan.born)))
            self.next_id += len(ids)
            shown |= self.carry_out(session, now, masks, scores, plan, ids, size)
        return shown

    # ---- planning: find again, match

    def plan(self, session: Session, now: int, masks: torch.Tensor, scores: torch.Tensor) -> Any:
        lows = []
        for thing in session.things:
            out = thing.cond.get(now) or self.find(session, thing, now)
            if now not in thing.cond:
                thing.non[now] = out
            self.events["unseen"] += out.score <= 0
            lows.append(self.filled(out.low))
        iou = np.array([[self.iou(d, t) for t in lows] for d in masks]).reshape(len(masks), len(lows))
        s, values = self.s, scores.tolist()
        if not session.things:
            return SimpleNamespace(lows=lows, born=list(range(len(masks))), matched={}, sure={}, unmatched=[])
        born = [d for d, v in enumerate(values) if v >= s.new_det_thresh and not (iou[d] >= s.assoc_iou_thresh).any()]
        unmatched = [
            t for t, low in enumerate(lows) if (low > 0).any() and not (iou[:, t] >= s.trk_assoc_iou_thresh).any()
        ]
        clear = iou.copy()
        for t in range(len(lows)):
            if (iou[:, t] >= s.high_iou_thresh).sum() > 1:
                clear[:, t] = 0
        for d in range(len(masks)):
            if (iou[d] >= s.high_iou_thresh).sum() > 1:
                clear[d] = 0
        matched = {d: [t for t in range(len(lows)) if clear[d, t] >= s.assoc_iou_thresh] for d in range(len(masks))}
        sure = {}
        for d, v in enumerate(values):
            if v >= s.high_conf_thresh and d not in born and clear[d].max() >= s.high_iou_thresh:
                sure[int(clear[d].argmax())] = d
        return SimpleNamespace(lows=lows, born=born, matched=matched, sure=sure, unmatched=unmatched)

    def iou(self, a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = (a > 0).numpy(), (b > 0).numpy()
        return float((a & b).sum() / max((a | b).sum(), 1))

    def filled(self, logits: torch.Tensor) -> torch.Tensor:
        """Small holes at 0.1, small specks at -0.1."""
        out, around, most = logits.clone(), np.ones((3, 3)), self.s.fill_hole_area
        labels, n = ndimage.label((out <= 0).numpy(), around)
        for k in range(1, n + 1):
            if (labels == k).sum() <= most:
                out[torch.from_numpy(labels == k)] = 0.1
        inside = (out > 0).numpy()
        limit = min(most, int(inside.sum()) // 2)
        labels, n = ndimage.label(inside, around)
        for k in range(1, n + 1):
            if (labels == k).sum() <= limit:
                out[torch.from_numpy(labels == k)] = -0.1
        return out

    # ---- finding again

    def find(self, session: Session, thing: Thing, now: int) -> Out:
        model = self.model
        near = sorted(thing.cond, reverse=True)[:4] if len(thing.cond) > 4 else list(thing.cond)
        self.events["pointers of four"] += len(thing.cond) > 4
        litter = [other for other in session.things if other.litter == thing.litter]
        valid: list[int] = []
        for frame in range(now - 1, 0, -1):
            if frame in thing.non:
                if self.eff([other.non[frame] for other in litter]) > 0.01:
                    valid.insert(0, frame)
                if len(valid) >= self.pointers - 1:
                    break
        if now - 1 not in valid:
            valid.append(now - 1)
        if valid[-6:] != list(range(now - 6, now))[-len(valid[-6:]) :]:
            self.events["memories chosen"] += 1
        memories = [(0, thing.cond[frame]) for frame in near]
        for rank in range(6, 0, -1):
            if rank <= len(valid) and valid[-rank] in thing.non:
                memories.append((rank, thing.non[valid[-rank]]))
        tokens = [out.memory for _, out in memories]
        where = [self.positions() + model.memory_temporal_positional_encoding[rank - 1] for rank, _ in memories]
        distances = [now - frame for frame in near]
        pointers = [thing.cond[frame].pointer for frame in near]
        for rank in range(1, self.pointers):
            if rank >= len(valid):
                break
            if valid[-rank] in thing.non:
                distances.append(rank)
                pointers.append(thing.non[valid[-rank]].pointer)
        split, split_places = model._process_object_pointers(
            distances, pointers, self.pointers, 1, model.hidden_dim, tokens[0].device
        )
        attended = model.memory_attention(
            current_vision_features=self.feats[2],
            current_vision_position_embeddings=self.places[2],
            memory=torch.cat([*tokens, split]).float(),
            memory_posision_embeddings=torch.cat([*where, split_places]),
            num_object_pointer_tokens=len(split),
        )
        pix = attended.reshape(1, len(self.feats[2]), -1).transpose(1, 2)
        return self.decode(
            pix.reshape(1, -1, *model.backbone_feature_sizes[2]), None, model._use_multimask(False, None)
        )

    def eff(self, outs: list[Out]) -> float:
        """Scores [B, 1] times IoUs [B], and then the mean: of a downgraded frame both are [B, 1]."""
        seen, iou = np.array([out.seen for out in outs]), np.array([out.iou for out in outs])
        return float((seen * iou).mean() if outs[0].downgraded else (seen[:, None] * iou).mean())

    def positions(self) -> torch.Tensor:
        grid = self.model.backbone_feature_sizes[2]
        encoding = self.model.memory_encoder.position_encoding(
            torch.Size((1, self.model.mem_dim, *grid)), torch.device("cpu"), torch.float32
        )
        return encoding.flatten(2).permute(2, 0, 1)

    def maps(self) -> list[torch.Tensor]:
        sizes = self.model.backbone_feature_sizes
        return [f.permute(1, 2, 0).reshape(1, -1, *size) for f, size in zip(self.feats, sizes, strict=True)]

    def decode(self, pix: torch.Tensor, prompt: torch.Tensor | None, several: bool) -> Out:
        out = self.model._single_frame_forward(
            image_embeddings=[*self.maps()[:2], pix], input_masks=prompt, multimask_output=several
        )
        score, iou = float(out.object_score_logits.flatten()[0]), float(out.iou_scores.max())
        return Out(out.object_pointer.reshape(1, -1), score, iou, out.pred_masks.reshape(self.low, self.low))

    # ---- carrying out

    def carry_out(self, session: Session, now: int, masks: Any, scores: Any, plan: Any, ids: Any, size: Any) -> Any:
        gone = self.lives(session, now, plan)
        if self.s.recondition_every_nth_frame > 0 and now % self.s.recondition_every_nth_frame == 0:
            self.confirm(session, now, masks, plan)
        lows = self.hide(session, now, plan.lows, gone)
        if session.things:
            big = self.big(torch.stack(lows)[:, None])
            big = self.shrunk(big)
            for thing, one in zip(session.things, big, strict=True):
                seen = bool((one > 0).any())
                thing_out = thing.cond.get(now) or thing.non[now]
                thing_out.memory = self.remember(one[None].sigmoid(), seen)
        shown = {thing.id: low for thing, low in zip(session.things, lows, strict=True) if thing.id not in gone}
        session.things += self.bear(now, masks[plan.born], [float(scores[d]) for d in plan.born], ids, size)
        shown |= {id: self.filled(masks[d]) for id, d in zip(ids, plan.born, strict=True)}
        litters = {thing.litter for thing in session.things if thing.id in gone}
        session.things = [thing for thing in session.things if thing.id not in gone]
        for litter in litters:
            left = [thing for thing in session.things if thing.litter == litter]
            for frame in {frame for thing in left for frame in thing.cond}:
                if not any(thing.cond[frame].given for thing in left):
                    for thing in left:
                        thing.non[frame] = replace(thing.cond.pop(frame), downgraded=True)
        return shown

    def lives(self, session: Session, now: int, plan: Any) -> set[int]:
        s, things, gone = self.s, session.things, set[int]()
        for t in {t for places in plan.matched.values() for t in places}:
            things[t].alive = min(s.max_trk_keep_alive, things[t].alive + 1)
        for t in plan.unmatched:
            things[t].unmatched += 1
            things[t].alive = max(s.min_trk_keep_alive, things[t].alive - 1)
        for thing in things:
            if thing.unmatched >= s.hotstart_unmatch_thresh and now - thing.born < s.hotstart_delay:
                gone.add(thing.id)
        for places in plan.matched.values():
            if len(places) > 1:
                eldest = min(places, key=lambda t: things[t].born)
                for t in places:
                    if t != eldest:
                        session.doubled[things[eldest].id, things[t].id] += 1
        for (_, id), count in session.doubled.items():
            thing = next((one for one in things if one.id == id), None)
            if thing and count >= s.hotstart_dup_thresh and now - thing.born < s.hotstart_delay:
                gone.add(id)
        self.events["removed"] += len(gone)
        self.removed |= gone
        return gone

    def confirm(self, session: Session, now: int, masks: torch.Tensor, plan: Any) -> None:
        for t, d in plan.sure.items():
            thing = session.things[t]
            out = thing.cond.get(now) or thing.non[now]
            score = 10.0 if out.given else out.score
            if score <= self.s.high_conf_thresh:
                continue
            self.events["confirmed after the first frame"] += now > 0
            given = self.given(masks[d])
            out.pointer, out.score, out.iou, out.given = self.pointer(given), 10.0, 1.0, True
            for other in session.things:
                if other.litter == thing.litter and now in other.non:
                    other.cond[now] = other.non.pop(now)

    def hide(self, session: Session, now: int, lows: list[torch.Tensor], gone: set[int]) -> list[torch.Tensor]:
        things, least = session.things, self.s.suppress_overlapping_based_on_recent_occlusion_threshold
        last = [
            thing.hidden_at if thing.hidden_at is not None else (100_000 if thing.id in gone else -1)
            for thing in things
        ]
        out = []
        for i, thing in enumerate(things):
            over = [j for j in range(len(things)) if j != i and self.iou(lows[i], lows[j]) >= least]
            hidden = any(last[i] > last[j] > -1 for j in over)
            self.events["hidden"] += hidden
            thing.hidden_at = now if hidden or not (lows[i] > 0).any() else last[i]
            out.append(torch.full_like(lows[i], -10.0) if hidden else lows[i])
        return out

    # ---- masks that are given, and memory

    def big(self, masks: torch.Tensor) -> torch.Tensor:
        return F.interpolate(masks, (4 * self.low, 4 * self.low), mode="bilinear", align_corners=False)

    def given(self, logits: torch.Tensor) -> torch.Tensor:
        return (self.big(logits[None, None]) > 0).float()

    def pointer(self, given: torch.Tensor) -> torch.Tensor:
        return self.decode(self.maps()[2], self.model.mask_downsample(given), several=False).pointer

    def shrunk(self, big: torch.Tensor) -> torch.Tensor:
        if len(big) < 2:
            return big
        winner, out = big.argmax(0), []
        for i, one in enumerate(big):
            left = ((one > 0) & (winner == i)).sum()
            before = max(int((one > 0).sum()), 1)
            out.append(one if left / before >= 0.3 else one.clamp(max=-10.0))
        return torch.stack(out)

    def remember(self, mask: torch.Tensor, seen: bool) -> torch.Tensor:
        memory, _ = self.model.memory_encoder(self.maps()[2], mask * 20.0 - 10.0)
        if not seen:
            memory = memory + self.model.occlusion_spatial_embedding_parameter[..., None, None]
        return memory.to(torch.bfloat16).flatten(2).permute(2, 0, 1)

    def bear(self, now: int, masks: torch.Tensor, scores: list[float], ids: list[int], size: Any) -> list[Thing]:
        if not ids:
            return []
        self.events["born together"] += len(ids) > 1
        given = [self.given(mask) for mask in masks]
        inside = [F.interpolate(g, size, mode="bilinear", align_corners=False, antialias=True) > 0.5 for g in given]
        lows = []
        for i, one in enumerate(inside):
            kept = one.clone()
            for later in inside[i + 1 :]:
                kept &= ~later
            self.events["born over another"] += bool((kept != one).any())
            solid = torch.where(kept, BIG, -BIG)
            lows.append(F.interpolate(solid, (self.low,) * 2, mode="bilinear", align_corners=False, antialias=True))
        high = F.interpolate(torch.cat(lows), (self.side,) * 2, mode="bilinear", align_corners=False)
        winner, things = high.argmax(0), []
        for i, id in enumerate(ids):
            own = (high[i] > 0) & ((winner == i) if len(ids) > 1 else True)
            mask = F.interpolate(
                own.float()[None], (4 * self.low,) * 2, mode="bilinear", align_corners=False, antialias=True
            )
            out = Out(self.pointer(given[i]), 10.0, 1.0, lows[i][0, 0], self.remember(mask, True), True)
            things.append(Thing(id, now, ids[0], scores[i], {now: out}, alive=self.s.init_trk_keep_alive))
        return things
