#!/usr/bin/env python
"""Train the demo checkpoint from scratch: a tiny SAM 3 that finds coloured shapes by words and by examples.

    python scripts/demo_weights/train_detector.py --hours 2 --work build/demo  # train; the same command again goes on
    python scripts/demo_weights/train_detector.py --evaluate sam3label/demo/checkpoint
    python scripts/demo_weights/train_detector.py --export build/demo/last.pt --out sam3label/demo/checkpoint

The result has the layout of the published checkpoint (`sam3_video`), so the ordinary loader reads it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import exam
import lessons
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor, Sam3VideoConfig

from sam3label.demo.shapes import ANYTHING, COLORS, SHAPES, SYNONYMS
from sam3label.train.detector import Batch, LossWeights, Recipe, Trainer

SIDE, PATCH, WIDTH, QUERIES_PER_SIDE = 128, 8, 64, 5
GRID = SIDE // PATCH
CELLS = 4 * GRID  # mask cells per side
FINE = 2 * CELLS  # per side of the masks in lessons: what is drawn is compared enlarged, as it will be for a photo
CHECKPOINT = Path(__file__).parents[2] / "sam3label" / "demo" / "checkpoint"
TABLE_BEGIN, TABLE_END = "<!-- scores -->", "<!-- end of scores -->"
KINDS = {
    "words": "words",
    "labels": "words, answers over 0.4 after mask NMS at 0.7, as labels are selected",
    "combination": "words never named together in training",
    "boxes": "boxes alone, same picture",
    "both": "words and a box",
    "both_words": "the same words without the box",
    "counter": "words and a counter-example box",
    "canvas": "boxes on 3 references from other pictures (canvas)",
}


def tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's manner: a known word is one token, any other falls into smaller pieces."""
    letters = _byte_letters()
    words = [*COLORS, *SHAPES, *SYNONYMS, *ANYTHING, lessons.VISUAL, *lessons.STRANGERS]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(words):
        pieces = _merge([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:  # a later merge never disturbs an earlier word: lower ranks go first
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)


def _byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes that byte-level BPE works on."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _merge(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for left, right in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def tokenize_with(words: CLIPTokenizer) -> lessons.Tokenize:
    """Phrases -> ids and mask, as long as the longest phrase."""

    def tokenize(phrases: Any) -> tuple[Tensor, Tensor]:
        coded = words(list(phrases), return_tensors="pt", padding=True)
        return coded.input_ids, coded.attention_mask

    return tokenize


def detector_config(words: CLIPTokenizer) -> Sam3Config:
    """The tiny detector: 128 px pictures, 16 x 16 tokens, 25 queries."""
    head = {"hidden_size": WIDTH, "num_attention_heads": 4}
    block = {**head, "intermediate_size": 192, "dropout": 0.0}
    vit = {
        "model_type": "sam3_vit_model", "hidden_size": 96, "intermediate_size": 320, "num_hidden_layers": 6,
        "num_attention_heads": 4, "image_size": SIDE, "pretrain_image_size": SIDE, "patch_size": PATCH,
        "window_size": 8, "global_attn_indexes": [1, 3, 5], "layer_norm_eps": 1e-5,
    }  # fmt: skip
    return Sam3Config(
        vision_config={
            "backbone_config": vit,
            "fpn_hidden_size": WIDTH,
            "backbone_feature_sizes": [[GRID * s, GRID * s] for s in (4, 2, 1)],
            "scale_factors": [4.0, 2.0, 1.0, 0.5],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128,
            "projection_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32,
            "hidden_act": "gelu", "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        geometry_encoder_config={**block, "num_layers": 1, "roi_size": 4},
        detr_encoder_config={**block, "num_layers": 2},
        detr_decoder_config={**block, "num_layers": 3, "num_queries": QUERIES_PER_SIDE**2},
        mask_decoder_config={**head, "num_upsampling_stages": 3},
    )  # fmt: skip


def fresh_detector(words: CLIPTokenizer, seed: int) -> Sam3Model:
    """The tiny detector with weights to start from."""
    torch.manual_seed(seed)
    model = Sam3Model(detector_config(words))
    start_well(model)
    return model


@torch.no_grad()
def start_well(model: Sam3Model) -> None:
    """Weights from which a narrow detector learns: Xavier, query boxes on a grid, attention around each query's box.

    The library's initial std of 0.02 suits widths of 1,024; here it would leave every residual branch near zero, and
    all queries would start on one spot.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    model.vision_encoder.backbone.embeddings.position_embeddings.normal_(std=0.1)
    decoder = model.detr_decoder
    side = math.isqrt(decoder.reference_points.num_embeddings)
    ticks = (torch.arange(side) + 0.5) / side
    y, x = (axis.flatten() for axis in torch.meshgrid(ticks, ticks, indexing="ij"))
    decoder.reference_points.weight.copy_(torch.logit(torch.stack([x, y, *[torch.full_like(x, 0.25)] * 2], dim=1)))
    decoder.box_head.layer3.weight.zero_()
    for bias in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        _attend_inside(bias)


def _attend_inside(bias: nn.Module) -> None:
    """Make a relative position bias start as a penalty on what lies outside the query's box, stronger head by head.

    Its input is the signed distance of a token to the two edges of the box. Left to chance, attention would start
    spread over the whole picture, and queries would take very long to find out where they are.
    """
    heads = bias.layer2.out_features
    strength = torch.linspace(0, 12, heads)
    bias.layer1.weight[:2] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])  # before the first edge, after the second
    bias.layer2.weight.mul_(0.1)
    bias.layer2.weight[:, :2] = -strength[:, None]


class DenseHeads(nn.Module):
    """What image features should tell, asked of them directly. Training only; it fades as the queries learn.

    Each token names the color and shape of what covers it, draws its box and fills in its own mask cells; each object,
    its tokens taken together, is named too: local evidence (a corner, a bend) is enough there, so shapes are learned
    sooner than when every token must know the whole.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.sizes = [len(COLORS) + 1, len(SHAPES) + 1, 4, (CELLS // GRID) ** 2]
        self.tokens = nn.Linear(channels, sum(self.sizes))
        self.objects = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, sum(self.sizes[:2])))

    def forward(self, features: Tensor, batch: Batch, progress: float) -> dict[str, Tensor]:
        weight = max(0.3, 1 - progress)
        seen = self.norm(features.flatten(2).transpose(1, 2))  # [B, tokens, C]
        classes, boxes, cells = (torch.stack(x) for x in zip(*map(_dense_truth, *_pictures(batch)), strict=True))
        colours, shapes, drawn, filled = self.tokens(seen).split(self.sizes, dim=-1)
        covered = classes[..., 0] > 0
        distance = (drawn[covered] - boxes[covered]).abs().mean() if covered.any() else drawn.sum() * 0
        return {
            "dense": weight * (_entropy(colours, classes[..., 0]) + 2 * _entropy(shapes, classes[..., 1])),
            "dense_box": weight * 2 * distance,
            "dense_cells": weight * F.binary_cross_entropy_with_logits(filled, cells),
            "objects": weight * self._objects(seen, batch),
        }

    def _objects(self, seen: Tensor, batch: Batch) -> Tensor:
        pooled, named = [], []
        for b, masks in enumerate(batch.instance_masks):
            cover = F.adaptive_avg_pool2d(masks, GRID).flatten(1) if len(masks) else masks.new_zeros(0, GRID**2)
            pooled.append(cover @ seen[b] / cover.sum(1, keepdim=True).clamp(min=1e-3))
            named.append(batch.attributes[b] + 1)
        colours, shapes = self.objects(torch.cat(pooled)).split(self.sizes[:2], dim=-1)
        truth = torch.cat(named)
        return _entropy(colours, truth[:, 0]) + 2 * _entropy(shapes, truth[:, 1]) if len(truth) else seen.sum() * 0


def _entropy(logits: Tensor, truth: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), truth.flatten())


def _pictures(batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    return batch.instance_masks, batch.instance_boxes, batch.attributes


def _dense_truth(masks: Tensor, boxes: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one picture: classes [tokens, 2], 0 background; edges seen from the token [tokens, 4]; cells [tokens, 16]."""
    step = CELLS // GRID
    if not len(masks):
        zeros = boxes.new_zeros(GRID**2, 4 + step**2)
        return zeros[:, :2].long(), zeros[:, :4], zeros[:, 4:]
    cover = F.adaptive_avg_pool2d(masks, GRID).flatten(1)  # [N, tokens]
    best, owner = cover.max(0)
    classes = (attributes[owner] + 1) * (best > 0.35)[:, None]
    ticks = (torch.arange(GRID, device=boxes.device) + 0.5) / GRID
    here = torch.stack([ticks.repeat(GRID), ticks.repeat_interleave(GRID)], dim=1)
    center, half = boxes[owner, :2], boxes[owner, 2:] / 2
    edges = torch.cat([center - half - here, center + half - here], dim=1) * 4
    union = F.adaptive_avg_pool2d(masks.sum(0, keepdim=True).clamp(max=1), CELLS)
    cells = F.pixel_unshuffle(union, step).flatten(1).T
    return classes, edges, cells


def new_trainer(words: CLIPTokenizer, recipe: Recipe) -> Trainer:
    model = fresh_detector(words, recipe.seed)
    return Trainer(model, recipe, DenseHeads(WIDTH))


def train(args: argparse.Namespace) -> None:
    """Train until the hours are used up, over several runs if need be; progress and state go to the work folder."""
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    recipe = Recipe(
        seed=args.seed,
        precision=args.precision,
        learning_rate=args.rate,
        look_until=args.look,
        fusion_until=args.fusion,
        weights=LossWeights(anchor=5.0, mask_focal=60.0, mask_dice=5.0),
    )
    trainer = new_trainer(words, recipe)
    last, spent = work / "last.pt", 0.0
    if last.exists():
        saved = torch.load(last, weights_only=False)
        trainer.load(saved["trainer"])
        spent = saved["seconds"]
    if args.freeze_encoder:
        encoder = trainer.model.vision_encoder.backbone
        encoder.load_state_dict(trainer.averaged.vision_encoder.backbone.state_dict())
        encoder.requires_grad_(False)
    tokenize = tokenize_with(words)
    room = lessons.Classroom(tokenize, SIDE, FINE, args.seed, args.window)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size / 1e6:.2f} M parameters, from step {trainer.steps}, {spent / 60:.1f} minutes so far", flush=True)
    room.batch(trainer.steps)  # draws the first window of scenes before the clock starts
    papers = {kind: exam.sheets(kind, 24, SIDE, CELLS, exam.EXAM_SEEDS + 2**28) for kind in KINDS if kind != "labels"}
    limit, begun, told, seen = args.hours * 3600, time.monotonic() - spent, spent, {}
    first_step, tested = trainer.steps, spent
    while (now := time.monotonic() - begun) < limit and trainer.steps < args.steps:
        made = room.pictures if now / limit < args.look else room.batch
        losses = trainer.step(made(trainer.steps), now / limit)
        seen = {name: 0.97 * seen.get(name, value) + 0.03 * value for name, value in losses.items()}
        if now - told > 30:
            told = now
            pace = (now - spent) / (trainer.steps - first_step)
            shown = " ".join(f"{name} {value:.3f}" for name, value in seen.items())
            print(f"{trainer.steps} {now / 60:.1f} min {pace:.3f} s/step {shown}", flush=True)
        if now - tested > 60 * args.every:
            tested = now
            _save(last, trainer, now)
            _test(trainer, tokenize, papers)
    _save(last, trainer, time.monotonic() - begun)
    _test(trainer, tokenize, papers)


def _save(path: Path, trainer: Trainer, seconds: float) -> None:
    beside = path.with_suffix(".tmp")
    torch.save({"trainer": trainer.state(), "seconds": seconds}, beside)
    beside.replace(path)


def _test(trainer: Trainer, tokenize: lessons.Tokenize, papers: dict[str, list[exam.Sheet]]) -> None:
    for kind, paper in papers.items():
        result = exam.examine(trainer.averaged, tokenize, paper)
        print(f"TEST {trainer.steps} {kind} " + " ".join(f"{k} {v:.3f}" for k, v in result.items()), flush=True)


def video_config(words: CLIPTokenizer) -> Sam3VideoConfig:
    """The detector's config inside a `sam3_video` one.

    The tracker's part only keeps the layout: it has no weights here. `train_tracker.py` makes them, and with
    `--minutes 0 --start OLD` puts an earlier tracker beside this detector.
    """
    detector = detector_config(words).to_dict()
    tracker = {
        "model_type": "sam3_tracker_video",
        "image_size": SIDE,
        "vision_config": {**detector["vision_config"], "fpn_hidden_size": 128},
        "prompt_encoder_config": {"hidden_size": 128, "image_size": SIDE, "patch_size": PATCH},
        "mask_decoder_config": {
            "hidden_size": 128,
            "mlp_dim": 256,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 128,
        },
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 256,
        "memory_attention_rope_feat_sizes": [GRID, GRID],
        "memory_encoder_hidden_size": 128,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 256,
    }
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=CELLS, dtype="float32")


def export(model: Sam3Model, words: CLIPTokenizer, out: Path) -> None:
    """Write the checkpoint in the hub's layout: config, float16 weights under the video model's names, processor."""
    out.mkdir(parents=True, exist_ok=True)
    video_config(words).save_pretrained(out)
    weights = {f"detector_model.{name}": value.half().contiguous() for name, value in model.state_dict().items()}
    beside = out / "model.safetensors.tmp"
    save_file(weights, beside, metadata={"format": "pt"})
    beside.chmod(0o644)
    beside.replace(out / "model.safetensors")
    images = Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}, mask_size={"height": CELLS, "width": CELLS})
    Sam3Processor(images, words).save_pretrained(out)


def export_state(state: Path, out: Path) -> None:
    """Export the averaged weights of a training in progress or done."""
    words = tokenizer()
    trainer = new_trainer(words, Recipe(precision="fp32"))
    saved = torch.load(state, weights_only=False, map_location="cpu")
    trainer.averaged.load_state_dict(saved["trainer"]["averaged"])
    export(trainer.averaged, words, out)
    print(f"{out}: the averaged weights of step {saved['trainer']['steps']}")


def evaluate(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Examine an exported checkpoint on held-out scenes; print the scores, write them to `scores.json` and the card."""
    model = Sam3Model.from_pretrained(folder, dtype=torch.float32).eval()
    tokenize = tokenize_with(CLIPTokenizer.from_pretrained(folder))
    scores: dict[str, dict[str, float]] = {}
    papers = {kind: exam.sheets("words" if kind == "labels" else kind, count, SIDE, CELLS) for kind in KINDS}
    for kind, paper in papers.items():
        how = {"threshold": 0.4, "nms": 0.7} if kind == "labels" else {}
        scores[kind] = exam.examine(model, tokenize, paper, **how)
        print(f"{kind:12}" + "  ".join(f"{name} {value:.3f}" for name, value in scores[kind].items()), flush=True)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    card = folder / "README.md"
    if card.exists():
        head, _, rest = card.read_text().partition(TABLE_BEGIN)
        card.write_text(head + TABLE_BEGIN + "\n" + _table(scores) + TABLE_END + rest.partition(TABLE_END)[2])
    return scores


def _table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as a Markdown table, the kinds of question spelled out."""
    columns = ("f1", "precision", "recall", "mean_iou", "presence_mcc", "negative_share", "questions")
    lines = [f"| question | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind, row in scores.items():
        cells = [f"{row[name]:.0f}" if name == "questions" else f"{row[name]:.3f}" for name in columns]
        if not row["negative_share"]:
            cells[columns.index("presence_mcc")] = "n/a"
        lines.append(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="wall clock of the whole training")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps even so")
    parser.add_argument("--every", type=float, default=6.0, help="minutes between saves and tests")
    parser.add_argument("--work", default="build/demo", help="where the state of the training is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="highest learning rate")
    parser.add_argument("--look", type=float, default=0.2, help="share of the time up to which only seeing is learned")
    parser.add_argument("--fusion", type=float, default=0.45, help="share up to which queries wait for fusion")
    parser.add_argument(
        "--freeze-encoder",
        action="store_true",
        help="leave the averaged image encoder as it is: a tracker can be trained on it meanwhile",
    )
    parser.add_argument("--window", type=int, default=2400, help="scenes kept in memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--export", type=Path, metavar="STATE", help="write the checkpoint of this state to --out")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="examine this checkpoint on held-out scenes")
    parser.add_argument("--scenes", type=int, default=150, help="pictures per kind of question for --evaluate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.export:
        export_state(args.export, args.out)
    elif args.evaluate:
        evaluate(args.evaluate, args.scenes)
    else:
        train(args)


if __name__ == "__main__":
    main()
