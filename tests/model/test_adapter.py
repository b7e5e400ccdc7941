"""Fine-tuned checkpoints: loaded through the one loader, written whole, told apart, refused when they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sam3label as sl
from sam3label.errors import CheckpointError
from sam3label.model.adapter import MARKER, WEIGHTS, Learned, find_adapter, write_adapter
from sam3label.model.checkpoint import resolve
from sam3label.model.inventory import convert, describe
from sam3label.model.weights import load_model, load_video_model

ADAPTED = "detr_encoder.layers.0.cross_attn.q_proj.weight"
VIT = "vision_encoder.backbone.layers.0.attention.q_proj.weight"
WHOLE, BIAS = "dot_product_scoring.text_proj.weight", "dot_product_scoring.text_proj.bias"


def learned(base: Path, seed: int = 0, rank: int = 2) -> Learned:
    shapes = {name: tensor.shape for name, tensor in load_model(resolve(str(base))).state_dict().items()}
    random = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=random)

    low_rank = {n: (values(rank, shapes[n][1]), values(shapes[n][0], rank)) for n in (ADAPTED, VIT)}
    return Learned(low_rank, {name: values(*shapes[name]) for name in (WHOLE, BIAS)})


def write(folder: Path, base: Path, what: Learned | None = None, **changed: str) -> Path:
    folder.mkdir()
    root = {"model": str(base), "revision": None, "identity": resolve(str(base)).identity} | changed
    write_adapter(folder, what or learned(base), root, {"classes": ["disc"]})
    return folder


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return dict(load_model(resolve(str(checkpoint))).state_dict())


def test_what_was_learned_is_added_to_the_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    what = learned(tiny_checkpoint)
    got, base = weights(write(tmp_path / "tuned", tiny_checkpoint, what)), weights(tiny_checkpoint)
    for name, (a, b) in what.low_rank.items():
        assert torch.equal(got[name], base[name] + b @ a)
    assert torch.equal(got[WHOLE], what.whole[WHOLE])
    assert all(torch.equal(got[name], base[name]) for name in base if name not in (ADAPTED, VIT, WHOLE, BIAS))


def test_the_tracker_stands_beside_the_tuned_detector(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tuned = write(tmp_path / "tuned", tiny_checkpoint)
    video = load_video_model(resolve(str(tuned)))
    assert torch.equal(video.detector_model.state_dict()[ADAPTED], weights(tuned)[ADAPTED])


def test_written_whole_it_has_the_same_weights_and_needs_no_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    tuned = write(tmp_path / "tuned", base)
    expected = weights(tuned)
    assert "with what was learned" in convert(str(tuned), tmp_path / "whole")
    official = convert(str(tuned), tmp_path / "sam3.pt")
    shutil.rmtree(base)
    got = weights(tmp_path / "whole")
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert "tensors under the official code's names" in official
    shutil.copyfile(tmp_path / "whole" / "config.json", tmp_path / "config.json")
    for file in (tmp_path / "whole").glob("*token*"):
        shutil.copyfile(file, tmp_path / file.name)
    imported = weights(tmp_path / "sam3.pt")
    assert torch.equal(imported[ADAPTED], expected[ADAPTED])
    for file in (*tuned.iterdir(), *(tmp_path / "whole").iterdir()):  # nobody is kept from the weights alone
        assert file.stat().st_mode == (tuned / MARKER).stat().st_mode, file


def test_merged_or_not_the_labels_are_the_same(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tuned = write(tmp_path / "tuned", tiny_checkpoint)
    convert(str(tuned), tmp_path / "whole")
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    seen = []
    for model in (tuned, tmp_path / "whole", tiny_checkpoint):
        with sl.Detector(str(model), device="cpu") as detector:
            found = detector(picture, ["red box", "cup"], floor=0.05)
        seen.append([(label.class_name, label.score, label.box_xywh, label.rle) for label in found.labels])
    assert seen[0] == seen[1] and seen[0]
    assert seen[0] != seen[2]


def test_its_identity_tells_it_from_its_base_and_from_others(tmp_path: Path, tiny_checkpoint: Path) -> None:
    one, same = write(tmp_path / "one", tiny_checkpoint), write(tmp_path / "same", tiny_checkpoint)
    other = write(tmp_path / "other", tiny_checkpoint, learned(tiny_checkpoint, seed=1))
    identities = [resolve(str(folder)).identity for folder in (tiny_checkpoint, one, other)]
    assert len(set(identities)) == 3
    assert resolve(str(same)).identity == identities[1]
    described = describe(str(one))
    assert described.came_from == f"fine-tuned from {tiny_checkpoint}"
    assert described.size == (one / WEIGHTS).stat().st_size


def test_one_upon_another_is_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    first, second = learned(tiny_checkpoint), learned(tiny_checkpoint, seed=1)
    tuned = write(tmp_path / "tuned", tiny_checkpoint, second.upon(first))
    base = weights(tiny_checkpoint)
    (a, b), (c, d) = first.low_rank[ADAPTED], second.low_rank[ADAPTED]
    assert torch.allclose(weights(tuned)[ADAPTED], base[ADAPTED] + b @ a + d @ c, atol=1e-6)
    assert torch.equal(weights(tuned)[WHOLE], second.whole[WHOLE])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_peft_reads_it(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from peft import PeftModel

    tuned = write(tmp_path / "tuned", tiny_checkpoint)
    beside: Any = PeftModel.from_pretrained(load_model(resolve(str(tiny_checkpoint))), str(tuned)).eval()
    asked = {
        "pixel_values": torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
        "input_ids": torch.tensor([[1, 5, 2]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
    }
    with torch.no_grad():
        unmerged, ours = beside(**asked), load_model(resolve(str(tuned)))(**asked)
    assert torch.allclose(unmerged.pred_logits, ours.pred_logits, atol=1e-4)
    assert torch.allclose(unmerged.pred_masks, ours.pred_masks, atol=1e-3)
    got, expected = beside.merge_and_unload().state_dict(), weights(tuned)
    assert set(got) == set(expected)
    assert all(torch.allclose(got[name], value, atol=1e-6) for name, value in expected.items())


def test_another_base_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tuned = write(tmp_path / "tuned", tiny_checkpoint, identity="sha256:" + "0" * 64)
    with pytest.raises(CheckpointError, match=r"as it was then \(sha256:000000000000\.\.\.\), and that is another"):
        resolve(str(tuned))


def test_a_base_that_is_gone_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tuned = write(tmp_path / "tuned", tiny_checkpoint, model=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"tuned was trained from .*gone, which cannot be had: model .*gone"):
        resolve(str(tuned))


def test_damaged_ones_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tuned = write(tmp_path / "tuned", tiny_checkpoint)
    whole = (tuned / WEIGHTS).read_bytes()
    tensors = load_file(tuned / WEIGHTS)
    save_file({**tensors, "base_model.model.unknown.weight": torch.zeros(2)}, tuned / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"does not fit its base: 1 weights .*unknown\.weight"):
        load_model(resolve(str(tuned)))
    (tuned / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file"):
        load_model(resolve(str(tuned)))
    (tuned / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors: copy the whole folder"):
        resolve(str(tuned))
    (tuned / MARKER).write_text(json.dumps({"base": "sam3"}))
    with pytest.raises(CheckpointError, match=r"does not name the checkpoint it was trained from"):
        find_adapter(tuned)
