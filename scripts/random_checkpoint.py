"""Write a random SAM 3 checkpoint in the layout of the hub: for parity tests and for measuring speed.

    python scripts/random_checkpoint.py --size tiny --seed 0 OUT

`tiny`   a few MB, an image in some tens of milliseconds on a CPU core. Its weights get noise on top of the library's
         initialisation and its output layers are scaled, because the plain initialisation gives every query of every
         image the same score and an almost flat mask: nothing a test could tell apart.
`least`  the same with a quarter of the tokens and of the cells of a mask: a third of the time, for whole runs in tests.
`small`  a scaled-down model (550 MB) that keeps the full one's proportion: encoding an image costs about 13 (image,
         phrase) pairs. For comparing speeds on a CPU.
`full`   the published size (about 3.4 GB), plain initialisation.

With --drawn every weight is drawn by its own name instead, norms and biases too, so that two that were swapped show.

The folder holds what `Sam3VideoModel` and `Sam3Processor` save: detector and tracker weights in safetensors, the
`sam3_video` config, the processor's settings and a CLIP tokenizer with a small vocabulary built here. Nothing is
downloaded, and the same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whole-word tokens of the small vocabulary; every other word is spelled letter by letter.
WORDS = """
a the of in on with and red green blue yellow black white small large person people man woman child helmet hard hat
safety vest forklift truck car bus bicycle dog cat bird horse box bottle can cup bag chair table tree road sign light
circle square triangle star ring cross visual object animal vehicle
"""


@dataclass(frozen=True)
class Size:
    """The numbers that make a model small. Heads divide every width; the grid is image / 14 patches a side."""

    image: int
    window: int  # patches a side of a window of the ViT, and of the image its position embedding was made for
    vit: int
    vit_mlp: int
    vit_layers: int
    width: int  # of the detector: a multiple of 64 above 64, the tracker asks for it
    mlp: int
    layers: int
    queries: int
    text: int
    heads: int = 4
    lively: bool = False


SIZES = {
    "tiny": Size(224, 8, 64, 128, 4, 128, 128, 2, 24, 64, lively=True),
    "least": Size(112, 4, 64, 128, 4, 128, 64, 2, 24, 64, lively=True),
    # 63 GFLOP an image, 4.75 a pair, of which encoder 50 %, decoder 14 %, masks 36 % (full: 5613, 420; 61, 5, 34 %)
    "small": Size(224, 8, 768, 3072, 16, 128, 2304, 6, 50, 128),
}


def make_checkpoint(out: Path, size: str = "tiny", seed: int = 0, drawn: bool = False) -> Path:
    """Write the checkpoint into the folder `out` (made if missing) and return it."""
    import torch
    from safetensors.torch import save_file
    from transformers import Sam3VideoConfig, Sam3VideoModel

    tokenizer = word_tokenizer()
    config = Sam3VideoConfig() if size == "full" else Sam3VideoConfig(**_video_config(SIZES[size], len(tokenizer)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam3VideoModel(config).eval()
        if drawn:
            draw_by_name(model, seed)
        embedding = model.tracker_model.prompt_encoder.shared_embedding  # one and the same in the official code
        embedding.load_state_dict(model.tracker_model.shared_image_embedding.state_dict())
        if size in SIZES and SIZES[size].lively:
            _enliven(model.detector_model)
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    save_file(model.state_dict(), out / "model.safetensors", metadata={"format": "pt"})
    _save_processor(out, tokenizer, config.image_size)
    return out


def draw_by_name(model: Any, seed: int) -> None:
    """Draw every weight of a model from its own name and the seed; products keep about the size of what goes in."""
    import torch

    generator = torch.Generator()
    for name, tensor in model.state_dict().items():
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))
        with torch.no_grad():
            tensor.normal_(generator=generator)
            if tensor.ndim < 2:
                tensor.mul_(0.1 if name.endswith("weight") else 0.05).add_(float(name.endswith("weight")))
            elif "embed" in name or "token" in name:
                tensor.mul_(0.3)
            else:
                tensor.mul_(1 / math.sqrt(tensor[0].numel()))


def make_official_file(checkpoint: Path, out: Path, release: str = "3") -> Path:
    """Write a checkpoint's weights as Meta's file `sam3.pt` has them, with the tensors that ours has no use for.

    Those are the buffers of rotary positions and three projections of points; in release 3.1 two further necks, a
    tracker of another kind, and no fourth level of the detector's neck.
    """
    import torch
    from safetensors.torch import load_file

    from sam3label.model.official import to_official

    tensors = to_official(load_file(checkpoint / "model.safetensors"))
    neck, extra = "detector.backbone.vision_backbone", torch.Generator().manual_seed(0)
    for i in range(2):
        tensors[f"{neck}.trunk.blocks.{i}.attn.freqs_cis"] = torch.zeros(4, 2, dtype=torch.complex64)
    for kind in ("direct", "pool", "pos_enc"):
        tensors[f"detector.geometry_encoder.points_{kind}_project.weight"] = torch.randn(8, 2, generator=extra)
    if release == "3.1":
        levels = {name: t for name, t in tensors.items() if name.startswith(f"{neck}.sam2_convs.")}
        dropped = (f"{neck}.sam2_convs.", f"{neck}.convs.3.", "tracker.")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
        for own in ("interactive_convs", "propagation_convs"):
            tensors |= {name.replace("sam2_convs", own): tensor for name, tensor in levels.items()}
        tensors["tracker.model.output_valid_embed"] = torch.randn(16, 8, generator=extra)
    torch.save({"model": tensors}, out)
    return out


def _video_config(size: Size, vocabulary: int) -> dict[str, Any]:
    grid = size.image // 14
    detector = detector_config(size, vocabulary)
    tracker = {
        "model_type": "sam3_tracker_video",
        "image_size": size.image,
        "vision_config": detector["vision_config"],
        "prompt_encoder_config": {"hidden_size": size.width, "image_size": size.image, "patch_size": 14},
        "mask_decoder_config": {
            "hidden_size": size.width,
            "mlp_dim": 2 * size.width,
            "num_attention_heads": size.heads,
            "iou_head_hidden_dim": size.width,
        },
        "memory_attention_hidden_size": size.width,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 2 * size.width,
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": size.width,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": size.width,
        "memory_fuser_embed_dim": size.width,
        "memory_fuser_intermediate_dim": 2 * size.width,
    }
    return {"detector_config": detector, "tracker_config": tracker, "low_res_mask_size": 4 * grid}


def detector_config(size: Size, vocabulary: int) -> dict[str, Any]:
    grid = size.image // 14
    block = {"hidden_size": size.width, "num_attention_heads": size.heads, "intermediate_size": size.mlp}
    vit = {
        "model_type": "sam3_vit_model",
        "hidden_size": size.vit,
        "intermediate_size": size.vit_mlp,
        "num_hidden_layers": size.vit_layers,
        "num_attention_heads": size.heads,
        "image_size": size.image,
        "pretrain_image_size": 14 * size.window,
        "window_size": size.window,
        "global_attn_indexes": [size.vit_layers // 2 - 1, size.vit_layers - 1],
    }
    return {
        "model_type": "sam3",
        "vision_config": {
            "backbone_config": vit,
            "fpn_hidden_size": size.width,
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": size.text,
            "intermediate_size": 2 * size.text,
            "projection_dim": size.text,
            "num_hidden_layers": 2,
            "num_attention_heads": size.heads,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        "geometry_encoder_config": {**block, "num_layers": 2},
        "detr_encoder_config": {**block, "num_layers": size.layers},
        "detr_decoder_config": {**block, "num_layers": size.layers, "num_queries": size.queries},
        "mask_decoder_config": {"hidden_size": size.width, "num_attention_heads": size.heads},
    }


def _enliven(detector: Any) -> None:
    """Noise on every weight, wider spread where scores and masks are read off: some queries pass a floor, most fail.

    The first channel of the text side of the dot product is made a constant 10, so that the query side's bias there
    lowers every query's logit alike.
    """
    import torch

    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        scoring, decoder = detector.dot_product_scoring, detector.detr_decoder
        detector.text_projection.weight.mul_(3.0)
        scoring.query_proj.weight.mul_(15.0)
        scoring.text_proj.weight[0], scoring.text_proj.bias[0] = 0.0, 10.0
        scoring.query_proj.weight[0], scoring.query_proj.bias[0] = 0.0, -4.5 / (10.0 * scoring.scale)
        decoder.presence_head.layer3.weight.mul_(160.0)
        decoder.presence_head.layer3.bias.sub_(6.0)
        decoder.reference_points.weight.normal_(0.0, 1.5)
        detector.mask_decoder.mask_embedder.layers[-1].weight.mul_(4.0)


def word_tokenizer() -> Any:
    """A CLIP byte-pair tokenizer whose merges spell `WORDS`, the two special tokens last, as in CLIP's own."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.setdefault((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    tokens = dict.fromkeys([*vocabulary, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges), model_max_length=32)


def _save_processor(out: Path, tokenizer: Any, image_size: int) -> None:
    from transformers import Sam3ImageProcessor, Sam3Processor

    mask = image_size // 14 * 4
    images = Sam3ImageProcessor(
        size={"height": image_size, "width": image_size}, mask_size={"height": mask, "width": mask}
    )
    Sam3Processor(images, tokenizer).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random SAM 3 checkpoint in the hub's layout.")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--size", choices=("least", "tiny", "small", "full"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn", action="store_true", help="draw every weight by its own name")
    arguments = parser.parse_args()
    folder = make_checkpoint(arguments.out, arguments.size, arguments.seed, arguments.drawn)
    total = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {arguments.size} random SAM 3 checkpoint, seed {arguments.seed}, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
