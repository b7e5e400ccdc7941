"""`finetune`: gather what people reviewed, train on it, and let held-out photos decide whether it is kept.

OUT.work/         the training's state and log, both runs over the held-out photos, figures.json
OUT/              the checkpoint, once it has passed: adapter, model card, figures
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.core.files import write_whole
from sam3label.core.records import ConceptList, MediaItem
from sam3label.core.text import count
from sam3label.errors import InputError, OutputError, os_reason
from sam3label.flywheel import gate
from sam3label.flywheel.card import write_card
from sam3label.flywheel.gate import Examination, Judgement, judge
from sam3label.flywheel.material import Division, Material, gather, with_guard
from sam3label.flywheel.options import FinetuneOptions
from sam3label.flywheel.rehearsal import Rehearsal, rehearse, unreviewed
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.run.reader import Run

if TYPE_CHECKING:
    from sam3label.model.adapter import Learned
    from sam3label.model.checkpoint import Checkpoint
    from sam3label.train.costs import Costs
    from sam3label.train.detector import Precision
    from sam3label.train.loop import Course
    from sam3label.train.tuning import Tuner

FIGURES = "figures.json"
LEARNED_FROM, REHEARSED, JUDGED_BY = "learned_from", "rehearsed", "judged_by"  # in a checkpoint: ids of photos
TRAINING, TRAINED = "training", "checkpoint"  # folders in OUT.work
_SHOWN_EXAMS = 16  # held-out photos whose losses are shown while it trains
_RATES = {"lora": 2e-3, "heads": 5e-4, "full": 1e-3}


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a fine-tuning came to. `checkpoint` is None where it was refused, or nothing was trained (`dry_run`)."""

    checkpoint: Path | None
    verdict: Judgement | None
    photos: int
    held_out: int
    work: Path


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what: losses, how far labelling is, and sentences."""

    on_course: Callable[[Course], None] = lambda _: None
    on_labelled: Callable[[str, Progress], None] = lambda _name, _progress: None
    on_message: Callable[[str], None] = lambda _: None


def finetune(
    runs: Sequence[Run],
    out: Path,
    options: FinetuneOptions,
    gt: str | Path | None = None,
    gt_split: str | None = None,
    *,
    tell: Listeners = Listeners(),
) -> Finetuned:
    """Train on what people reviewed in the runs, and write the checkpoint if held-out photos say it is better.

    The same call goes on where an earlier one ended. Raises InputError, ConfigError, CheckpointError, OutputError, and
    TuningStoppedError where the training went wrong.
    """
    from sam3label.model.checkpoint import resolve

    _refuse_full(out)
    info = runs[-1].info
    base = options.model or info.get("model")
    if base is None:
        raise InputError(f"{runs[-1].folder} does not say which checkpoint made it: name one with --model.")
    checkpoint = resolve(base, options.revision, options.image_size or _size_of(info))
    material = gather(runs, division(checkpoint, options), gt, gt_split)
    for note in material.notes:
        tell.on_message(note)
    work = out.with_name(f"{out.name}.work")
    others = unreviewed(runs, material, options.groups, options.guard_photos)
    rehearsal = rehearse(runs, material, others.free, checkpoint.identity)
    learned = _train(material, rehearsal, checkpoint, options, work / TRAINING, tell)
    if learned is None:
        return Finetuned(None, None, len(material.train), len(material.held_out), work)
    trained = _write(work / TRAINED, learned, checkpoint, base, options, material, rehearsal)
    verdict = _examined(runs[-1], material, others.guard, base, trained, options, work, tell)
    figures = {**verdict.to_json(), **_about(options, material, rehearsal, base, checkpoint, out)}
    write_whole(work / FIGURES, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if not verdict.passes and not options.keep_anyway:
        return Finetuned(None, verdict, len(material.train), len(material.held_out), work)
    _keep(trained, out, figures, verdict, work)
    return Finetuned(out, verdict, len(material.train), len(material.held_out), work)


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists: a checkpoint is never written over another. Name a new folder with -o.")


def division(checkpoint: Checkpoint, options: FinetuneOptions) -> Division:
    """Return how photos are divided: as they were for the checkpoint's own training, and new ones by the share."""
    about = checkpoint.adapter.about if checkpoint.adapter is not None else {}
    learned_from, rehearsed, judged = (
        frozenset(map(str, about.get(name, ()))) for name in (LEARNED_FROM, REHEARSED, JUDGED_BY)
    )
    trained = learned_from | rehearsed
    return Division(options.held_out, options.groups, trained, judged - trained)


def _size_of(info: dict[str, Any]) -> int | None:
    """Return the input side that a run was made with, if it was not the checkpoint's own."""
    size = (info.get("options") or {}).get("image_size")
    return int(size) if size else None


# ---- training


def _train(
    material: Material,
    rehearsal: Rehearsal,
    checkpoint: Checkpoint,
    options: FinetuneOptions,
    folder: Path,
    tell: Listeners,
) -> Learned | None:
    """Return what was learned; None where that was only to be planned."""
    from sam3label.model.device import pick_device
    from sam3label.model.weights import load_model, load_tokenizer
    from sam3label.train import costs, loop
    from sam3label.train.samples import Teacher, tokenizing
    from sam3label.train.tuning import Tuner, Tuning

    device = pick_device(options.device)
    recompute = device.type == "cuda" if options.recompute is None else options.recompute
    tuning = Tuning(
        method=options.method, rank=options.rank, steps=options.steps_for(len(material.train)),
        rate=options.rate or _RATES[options.method], images=options.photos_a_step, pairs_an_image=options.questions,
        precision=_precision(options), recompute=recompute, seed=options.seed,
    )  # fmt: skip
    model = load_model(checkpoint).to(device)
    grid = model.config.vision_config.image_size // model.config.vision_config.backbone_config.patch_size
    ways = {"side": model.config.vision_config.image_size, "cells": 8 * grid, "seed": options.seed}
    tokenize = tokenizing(load_tokenizer(checkpoint))
    teacher = Teacher(
        material.samples(material.train),
        tokenize,
        images=options.photos_a_step,
        pairs_an_image=options.questions,
        rehearsed=rehearsal.photos,
        **ways,
    )
    tuner = Tuner(model, teacher, tuning)
    spent = costs.measure(tuner)
    for sentence in _plan(material, rehearsal, tuner, spent, str(device)):
        tell.on_message(sentence)
    if options.dry_run:
        return None
    shown = Teacher(material.samples(material.held_out[:_SHOWN_EXAMS]), tokenize, varied=False, **ways)
    exams = [shown.exam(number) for number in range(len(shown.samples))]
    settings = {
        "base": checkpoint.identity,
        "photos": teacher.digest,
        "tuning": hashlib.sha256(repr(asdict(tuning)).encode()).hexdigest()[:16],
    }
    return loop.run(tuner, exams, folder, settings, on_progress=tell.on_course)


def _precision(options: FinetuneOptions) -> Precision:
    """Return the precision to train in; fp16 is refused by the options."""
    return options.dtype if options.dtype != "fp16" else "auto"


def _plan(material: Material, rehearsal: Rehearsal, tuner: Tuner, spent: Costs, device: str) -> list[str]:
    """Say what will be done and what it takes."""
    at_once, steps = tuner.teacher.photos_a_step, tuner.tuning.steps
    minutes = steps * at_once * spent.image_seconds / 60
    return [
        f"{count(len(material.train), 'photo')} to learn from, {len(material.held_out)} held out to judge by; "
        f"{count(len(material.asked), 'class', 'classes')}",
        rehearsal.told,
        f"{tuner.tuning.method}: {spent.trained:,} of {spent.of_all:,} numbers are trained; {steps} steps of "
        f"{count(at_once, 'photo')} on {device}",
        f"memory: weights {_gb(spent.model_bytes)}, their training {_gb(spent.training_bytes)}, each photo "
        f"{_gb(spent.image_bytes)}: {_gb(spent.bytes_for(at_once))} with {at_once} at once, "
        f"{_gb(spent.bytes_for(1))} at least",
        f"time: about {minutes:.0f} minutes, by one photo's {spent.image_seconds:.2f} s (together they take less)",
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _write(
    folder: Path,
    learned: Learned,
    checkpoint: Checkpoint,
    base: str,
    options: FinetuneOptions,
    material: Material,
    rehearsal: Rehearsal,
) -> Path:
    """Write what was learned, upon what the base had learned itself, as a checkpoint that can be loaded."""
    from sam3label.model.adapter import write_adapter

    root = {"model": _lasting(base), "revision": options.revision, "identity": checkpoint.identity}
    if checkpoint.adapter is not None:  # the new one stands upon the base's own base, and needs nothing else
        earlier = checkpoint.adapter
        learned = learned.upon(earlier.learned())
        root = {"model": earlier.base, "revision": earlier.revision, "identity": earlier.base_identity}
    seen = checkpoint.adapter.about if checkpoint.adapter is not None else {}
    about = {
        "trained_from": {"model": _lasting(base), "identity": checkpoint.identity},
        "classes": list(material.concepts.names),
        LEARNED_FROM: sorted({*seen.get(LEARNED_FROM, ()), *(image.item.id for image in material.train)}),
        REHEARSED: sorted({*seen.get(REHEARSED, ()), *(photo.item.id for photo in rehearsal.photos)}),
        JUDGED_BY: sorted({*seen.get(JUDGED_BY, ()), *(image.item.id for image in material.held_out)}),
    }
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_adapter(partial, learned, root, about)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({os_reason(error)}): free some space.") from error
    return folder


def _lasting(model: str) -> str:
    """Return the name of a checkpoint that holds from every folder."""
    return str(Path(model).resolve()) if Path(model).exists() else model


# ---- judging


def _examined(
    run: Run,
    material: Material,
    guard: Sequence[MediaItem],
    base: str,
    trained: Path,
    options: FinetuneOptions,
    work: Path,
    tell: Listeners,
) -> Judgement:
    concepts = with_guard(material.concepts, options.guard)
    numbers = run.note("fingerprint") or {}
    label = LabelOptions(
        device=options.device,
        dtype=numbers.get("dtype", "auto"),
        prompt_style=numbers.get("prompt_style", "official"),
        image_size=options.image_size or _size_of(run.info),
        floor=run.floor,
        video="off",
        workers=0,
    )
    photos = [*(image.item for image in material.held_out), *guard]
    examination = Examination(photos, concepts, label, work)
    made = []
    for name, model, revision in ((gate.BEFORE, base, options.revision), (gate.AFTER, str(trained), None)):
        tell.on_message(f"labelling {count(len(photos), 'photo')} with {model}, {name} training")
        made.append(examination.label(model, revision, name, partial(tell.on_labelled, name)))
    groups = [options.groups.group(image.item.id) for image in material.held_out]
    return judge(made[0], made[1], material.truth(), groups, untouched(concepts, material))


def untouched(concepts: ConceptList, material: Material) -> list[str]:
    """Return the classes that nobody corrected: what they answer should stay."""
    return [concept.name for concept in concepts.concepts if concept.name not in material.touched]


def _about(
    options: FinetuneOptions,
    material: Material,
    rehearsal: Rehearsal,
    base: str,
    checkpoint: Checkpoint,
    out: Path,
) -> dict[str, Any]:
    return {
        "name": out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("sam3label"),
        "base": {"model": _lasting(base), "identity": checkpoint.identity},
        "photos": len(material.train),
        "photos_held_out": len(material.held_out),
        "rehearsed": {"photos": len(rehearsal.photos), "phrases": list(rehearsal.phrases)},
        "classes": list(material.concepts.names),
        "touched": sorted(material.touched),
        "options": asdict(options),
    }


def _keep(trained: Path, out: Path, figures: dict[str, Any], verdict: Judgement, work: Path) -> None:
    """Move the checkpoint to its place, with its figures, card and log."""
    try:
        write_whole(trained / FIGURES, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        log = work / TRAINING / "log.jsonl"
        shutil.copyfile(log, trained / log.name)
        write_card(trained, figures, verdict)
        if out.is_dir():
            out.rmdir()  # it is empty
        trained.replace(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({os_reason(error)}): the same command tries again.") from error
