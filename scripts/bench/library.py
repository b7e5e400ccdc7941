"""transformers' SAM 3 as its users run it, for `bench.py`: nothing of ours, with or without caching, up to labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from sam3label.core.records import Frame, Prompt, Rle

PAIRS_ON_CPU = 8  # of 1, 2, 4, 8 and 20 together the fastest for it


class Library:
    """transformers' model and processor, with nothing of ours. `shapes` [Q, h, w] are added to its mask logits."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, shapes: torch.Tensor | None = None
    ) -> None:
        from transformers import Sam3Model, Sam3Processor

        self.processor = Sam3Processor.from_pretrained(folder)
        self.model = Sam3Model.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.device, self.dtype = device, dtype
        self.texts: Any = None
        if shapes is not None:
            self.model.mask_decoder.register_forward_hook(lambda _, __, output: _added(output, shapes))

    @torch.inference_mode()
    def phrase(self, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float) -> Iterator[Any]:
        """For each image and phrase, as the model's documentation has it."""
        for image, frame in enumerate(frames):
            for number, prompt in enumerate(prompts):
                inputs = self.processor(images=frame.pixels, text=prompt.text, return_tensors="pt").to(self.device)
                inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
                outputs = self.model(**inputs)
                yield (image, number), self._instances(outputs, [frame.size_hw], floor)[0]

    def read(self, prompts: Sequence[Prompt]) -> None:
        """Encode the phrases once, for `cached`."""
        with torch.inference_mode():
            text = self.processor(text=[p.text for p in prompts], return_tensors="pt", padding="max_length")
            ids, valid = text["input_ids"].to(self.device), text["attention_mask"].to(self.device)
            features = self.model.get_text_features(input_ids=ids, attention_mask=valid).pooler_output
            self.texts = features, valid

    @torch.inference_mode()
    def cached(
        self, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float, batch: tuple[int, int]
    ) -> Iterator[Any]:
        """Images in batches encoded once, phrases encoded before, pairs in batches."""
        for start in range(0, len(frames), batch[0]):
            some = frames[start : start + batch[0]]
            inputs = self.processor(images=[frame.pixels for frame in some], return_tensors="pt").to(self.device)
            vision = self.model.get_vision_features(pixel_values=inputs["pixel_values"].to(self.dtype))
            pairs = [(image, number) for image in range(len(some)) for number in range(len(prompts))]
            for first in range(0, len(pairs), batch[1]):
                part = pairs[first : first + batch[1]]
                outputs = self._ask(vision, [i for i, _ in part], [n for _, n in part])
                sizes = [some[image].size_hw for image, _ in part]
                for (image, number), result in zip(part, self._instances(outputs, sizes, floor), strict=True):
                    yield (start + image, number), result

    def _ask(self, vision: Any, images: list[int], numbers: list[int]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        gathered = Sam3VisionEncoderOutput(
            fpn_hidden_states=tuple(level[images] for level in vision.fpn_hidden_states),
            fpn_position_encoding=tuple(level[images] for level in vision.fpn_position_encoding),
        )
        text = BaseModelOutputWithPooling(pooler_output=self.texts[0][numbers])
        return self.model(vision_embeds=gathered, text_embeds=text, attention_mask=self.texts[1][numbers])

    def _instances(self, outputs: Any, sizes: list[tuple[int, int]], floor: float) -> list[dict[str, torch.Tensor]]:
        results: list[dict[str, torch.Tensor]] = self.processor.post_process_instance_segmentation(
            outputs, threshold=floor, mask_threshold=0.5, target_sizes=sizes
        )
        return results


def _added(output: Any, shapes: torch.Tensor) -> Any:
    output.pred_masks.add_(shapes)
    return output


def labels(result: dict[str, torch.Tensor]) -> list[tuple[float, Rle, int, list[float]]]:
    """Score, run-length code, area and box of each object with any pixel, as pycocotools makes them of its mask."""
    found = []
    scores = result["scores"].float().tolist()
    for score, mask in zip(scores, result["masks"].to(torch.uint8).cpu().numpy(), strict=True):
        code = coco_mask.encode(np.asfortranarray(mask))
        area = int(coco_mask.area(code))
        if area:
            found.append((score, Rle(mask.shape, code["counts"]), area, coco_mask.toBbox(code).tolist()))
    return found
