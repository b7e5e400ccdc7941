"""The library's own video loop, as its users run it, with the two kernels it lacks supplied by independent code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from skimage.measure import label as connected_parts

from sam3label.core.records import Frame
from sam3label.model.detector import Detector
from sam3label.model.weights import widen_pointers


def generic_nms(ious: torch.Tensor, scores: torch.Tensor, threshold: float, use_iou_matrix: bool) -> torch.Tensor:
    assert use_iou_matrix
    left, kept = scores.argsort(descending=True, stable=True).tolist(), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if ious[best, other] <= threshold]
    return torch.tensor(kept)


def cc_2d(mask: torch.Tensor, get_counts: bool) -> tuple[torch.Tensor, torch.Tensor]:
    assert get_counts
    labels = np.stack([connected_parts(one[0], connectivity=2) for one in mask.cpu().numpy()])[:, None]
    counts = np.stack([np.where(one > 0, np.bincount(one.ravel())[one], 0) for one in labels])
    return torch.from_numpy(labels), torch.from_numpy(counts.astype(np.int32)).to(mask.device)


@dataclass
class LibraryFrame:
    """What the library says of one frame: the masks of each object by id, and where its own ids went astray."""

    masks: dict[int, np.ndarray]
    prompts: dict[int, int]
    scores: dict[int, float]
    removal: bool  # an object was taken back in this very frame
    aligned: dict[int, torch.Tensor] = field(default_factory=dict)  # the tracker's logits by the ids they belong to


class Library:
    """Sam3VideoModel with official or plain prompts. `settings` are attributes of the model, such as thresholds."""

    def __init__(self, folder: Path, prompt_style: str, settings: dict[str, Any]) -> None:
        from transformers import Sam3VideoModel, Sam3VideoProcessor  # noqa: F401
        from transformers.models.sam3_video import modeling_sam3_video as modeling

        modeling.cv_utils_kernel = SimpleNamespace(generic_nms=generic_nms, cc_2d=cc_2d)
        self.model = Sam3VideoModel.from_pretrained(folder).eval()
        widen_pointers(self.model)  # as it is, it runs no tracker that is 64 wide, which the demo checkpoint's is
        for name, value in settings.items():
            setattr(self.model, name, value)
        self.prompt_style = prompt_style
        self.encodes = 0
        self.model.detector_model.vision_encoder.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.encodes += 1

    def session(self, detector: Detector, frames: Sequence[Frame], phrases: Sequence[str]) -> Any:
        from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

        height, width = frames[0].size_hw
        session = Sam3VideoInferenceSession(detector.preprocess(frames), height, width, dtype=torch.float32)
        for phrase in phrases:
            number = session.add_prompt(phrase)
            text = detector.tokenizer(phrase, return_tensors="pt", padding="max_length", max_length=32)
            session.prompt_input_ids[number] = text.input_ids
            session.prompt_attention_masks[number] = text.attention_mask
        return session

    def track(self, detector: Detector, frames: Sequence[Frame], phrases: Sequence[str]) -> list[LibraryFrame]:
        session = self.session(detector, frames, phrases)
        if self.prompt_style == "official":
            self._append_summary(session)
        rows, before, result = self._watch_rows(), set[int](), []
        for output in self.model.propagate_in_video_iterator(session):
            shown = self._processed(session, output)
            shown.removal = output.removed_obj_ids > before
            shown.aligned = rows[output.frame_idx]
            before = set(output.removed_obj_ids)
            result.append(shown)
        return result

    def _watch_rows(self) -> dict[int, dict[int, torch.Tensor]]:
        """The tracker's masks with the ids that the session held when they were made."""
        rows: dict[int, dict[int, torch.Tensor]] = {}
        original, model = type(self.model).run_tracker_propagation, self.model

        def watched(inference_session: Any, frame_idx: int, reverse: bool) -> Any:
            ids = list(inference_session.obj_ids)
            logits, scores = original(model, inference_session, frame_idx, reverse)
            rows[frame_idx] = dict(zip(ids, logits.clone(), strict=True))
            return logits, scores

        model.run_tracker_propagation = watched
        return rows

    def _append_summary(self, session: Any) -> None:
        """The official prompt: the geometry encoder's token of this frame after the words."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        detector, original = self.model.detector_model, type(self.model).run_detection
        model = self.model

        def with_summary(inference_session: Any, vision_embeds: Any) -> Any:
            summary = detector.geometry_encoder(
                box_embeddings=torch.zeros(1, 1, 4),
                box_mask=torch.zeros(1, 1, dtype=torch.bool),
                box_labels=torch.zeros(1, 1, dtype=torch.long),
                img_feats=vision_embeds.fpn_hidden_states[:-1],
                img_pos_embeds=vision_embeds.fpn_position_encoding[:-1],
            )
            for number, ids in inference_session.prompt_input_ids.items():
                valid = words[number]
                text = detector.get_text_features(input_ids=ids, attention_mask=valid).pooler_output
                joined = torch.cat((text, summary.last_hidden_state), 1)
                inference_session.prompt_embeddings[number] = BaseModelOutputWithPooling(pooler_output=joined)
                mask = torch.cat((valid.bool(), summary.attention_mask.bool()), 1)
                inference_session.prompt_attention_masks[number] = mask
            return original(model, inference_session, vision_embeds)

        words = dict(session.prompt_attention_masks)
        model.run_detection = with_summary

    def _processed(self, session: Any, output: Any) -> LibraryFrame:
        from transformers import Sam3VideoProcessor

        found = Sam3VideoProcessor.__new__(Sam3VideoProcessor).postprocess_outputs(session, output)
        ids = found["object_ids"].tolist()
        return LibraryFrame(
            {number: mask.numpy() for number, mask in zip(ids, found["masks"], strict=True) if mask.any()},
            {number: session.obj_id_to_prompt_id[number] for number in ids},
            dict(zip(ids, found["scores"].tolist(), strict=True)),
            False,
        )


def liven(tracker_model: Any, seed: int = 1) -> None:
    """Noise on the library's even initialisation, and objects that mostly count as seen: masks worth comparing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tracker_model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(3.0)
