"""`finetune` from a run to a checkpoint or a refusal, on a tiny checkpoint; and the history of a project."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import sam3label as sl
from sam3label.cli import app
from sam3label.core import masks
from sam3label.core.records import Correction
from sam3label.errors import ConfigError, OutputError
from sam3label.flywheel import gate, job, rehearsal
from sam3label.flywheel.card import card
from sam3label.flywheel.gate import Judgement
from sam3label.flywheel.options import FinetuneOptions
from sam3label.model.checkpoint import resolve
from sam3label.quality.compare import Agreement, BeforeAfter, Change, ClassChange

AT = "2026-11-01T10:00:00+00:00"
CHEAP = {"steps": 2, "photos_a_step": 1, "questions": 2, "rank": 2, "held_out": 0.5, "guard_photos": 2}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, least_checkpoint: Path) -> Path:
    """A project with a run over fourteen photos, of which people reviewed twelve: a box in each."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "photos").mkdir()
    for number in range(14):
        image = np.random.default_rng(number).integers(60, 90, (60, 80, 3), dtype=np.uint8)
        cv2.rectangle(image, (10 + number, 10), (30 + number, 40), (20, 20, 220), -1)
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), image)
    run = sl.label(folder / "photos", {"box": ["red box"], "cup": {}}, folder / "run", model=str(least_checkpoint),
                   workers=0, floor=0.3)  # fmt: skip
    mask = np.zeros((60, 80), np.bool_)
    made = []
    for number in range(12):
        mask[:] = False
        mask[10:41, 10 + number : 31 + number] = True
        item = f"{number}.png"
        made.append(Correction(item, 0, "added", f"new-{number}", "box", masks.encode(mask), at=AT))
        made.append(Correction(item, 0, "reviewed", at=AT))
    run.record(made)
    return folder


def test_a_checkpoint_that_is_not_better_is_refused_with_figures_and_kept_if_asked(project: Path) -> None:
    out, said = project / "checkpoints" / "one", list[str]()
    made = sl.finetune(project / "run", out, on_message=said.append, **CHEAP)
    assert made.checkpoint is None and not out.exists()
    assert made.verdict is not None and made.verdict.against
    assert "on 8 held-out photos it" in made.verdict.against[0] and "->" in made.verdict.against[0]
    figures = json.loads((project / "checkpoints" / "one.work" / job.FIGURES).read_text())
    assert figures["passes"] is False and figures["held_out"]["images"] == 8
    assert any(text.startswith("4 photos to learn from, 8 held out") for text in said)
    assert any(text.startswith("lora: ") and "numbers are trained; 2 steps" in text for text in said)
    kept = sl.finetune(project / "run", out, keep_anyway=True, **CHEAP)
    assert kept.checkpoint == out
    written = (out / "README.md").read_text()
    assert "**Kept although it did not pass**" in written and "| cgF1 |" in written
    assert (out / "adapter_config.json").is_file() and (out / "log.jsonl").is_file()
    with pytest.raises(OutputError, match="a checkpoint is never written over another"):
        sl.finetune(project / "run", out, **CHEAP)


def test_the_next_turn_stands_on_the_same_base_and_keeps_what_judged_apart(
    project: Path, least_checkpoint: Path
) -> None:
    first, second = project / "checkpoints" / "one", project / "checkpoints" / "two"
    if not first.exists():
        sl.finetune(project / "run", first, keep_anyway=True, **CHEAP)
    sl.finetune(project / "run", second, model=str(first), keep_anyway=True, **CHEAP)
    about = [json.loads((folder / "finetuned.json").read_text()) for folder in (first, second)]
    assert about[1]["base"] == about[0]["base"] and about[0]["base"]["model"] == str(least_checkpoint)
    assert about[1]["trained_from"]["model"] == str(first)
    assert about[1][job.JUDGED_BY] == about[0][job.JUDGED_BY]
    run = sl.label(project / "photos", ["red box"], project / "again", model=str(second), workers=0, limit=2)
    assert run.info["checkpoint"] == resolve(str(second)).identity
    turns = sl.history(project)
    assert [(turn.kind, turn.name) for turn in turns] == [
        ("run", "run"), ("checkpoint", "checkpoints/one"), ("checkpoint", "checkpoints/two"), ("run", "again"),
    ]  # fmt: skip
    assert turns[0].reviewed == 12 and turns[0].corrections == 12
    assert turns[2].model == "checkpoints/one" and turns[3].model == "checkpoints/two"
    shown = CliRunner().invoke(app, ["history", str(project)])
    assert shown.exit_code == 0 and "checkpoints/two" in shown.output and "->" in shown.output


def test_a_dry_run_says_what_it_takes_and_trains_nothing(project: Path) -> None:
    out = project / "checkpoints" / "dry"
    cheap = ["--steps", "2", "--photos-a-step", "1", "--questions", "2", "--rank", "2", "--held-out", "0.5"]
    said = CliRunner().invoke(app, ["finetune", str(project / "run"), "-o", str(out), "--dry-run", *cheap])
    assert said.exit_code == 0, said.output
    assert "memory: weights" in said.output and "time: about" in said.output
    assert not out.exists() and not (project / "checkpoints" / "dry.work" / "training").exists()


def test_what_is_rehearsed_is_said_and_never_judges_a_later_turn(
    project: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "SURE", 0.0)
    monkeypatch.setattr(rehearsal, "SILENT", 1.1)
    out, said = project / "rehearsed", list[str]()
    sl.finetune(project / "run", out, keep_anyway=True, on_message=said.append, **CHEAP)
    assert "1 photo that nobody reviewed is rehearsed, by what the base is sure of there: 2 phrases" in said
    assert any("2 steps of 2 photos on" in text for text in said)
    figures, about = (json.loads((out / name).read_text()) for name in (job.FIGURES, "finetuned.json"))
    assert figures["rehearsed"] == {"photos": 1, "phrases": ["red box", "cup"]}
    assert "in 1 photo that nobody reviewed, to 2 phrases (red box, cup)" in (out / "README.md").read_text()
    (rehearsed,) = about[job.REHEARSED]
    assert rehearsed not in {*about[job.LEARNED_FROM], *about[job.JUDGED_BY]}
    later = job.division(resolve(str(out)), FinetuneOptions(held_out=0.8))
    assert rehearsed not in later.held_out([f"{number}.png" for number in range(14)])


def test_other_settings_do_not_go_on_with_a_training(project: Path) -> None:
    out = project / "checkpoints" / "settings"
    sl.finetune(project / "run", out, **CHEAP)
    with pytest.raises(OutputError, match=r"begun with other settings \(tuning\)"):
        sl.finetune(project / "run", out, **CHEAP | {"steps": 3})


def test_options_tell_every_problem() -> None:
    with pytest.raises(
        ConfigError, match=r"method: 'lorra'.*Did you mean lora\?\nrank: 0 is not.*\nheld_out: 2 is not"
    ):
        FinetuneOptions(method="lorra", rank=0, held_out=2)  # type: ignore[arg-type]
    assert FinetuneOptions().steps_for(5) == 300
    assert FinetuneOptions(photos_a_step=4).steps_for(40) == 2000
    assert FinetuneOptions(steps=7).steps_for(40) == 7


# ---- the verdict

UP = Change(0.2, 0.8, (0.4, 0.8))
SAME = Change(0.8, 0.8, (-0.02, 0.02))
DOWN = Change(0.9, 0.7, (-0.3, -0.1))


def comparison(deciding: Change = UP, old: Change = SAME) -> BeforeAfter:
    classes = {"new": ClassChange(9, UP, UP, (0.3, 0.9)), "old": ClassChange(9, old, SAME, None)}
    return BeforeAfter(20, "segm", deciding, deciding, deciding, classes, True)


def agreed(f1: float) -> Agreement:
    return Agreement(30, 50, f1, (f1 - 0.05, f1 + 0.05), {"old": f1})


@pytest.mark.parametrize(
    ("figures", "guard", "untouched", "said"),
    [
        (comparison(), agreed(0.97), ["old"], None),
        (comparison(), None, [], None),
        (comparison(SAME), None, [], r"it is not better: cgF1 0\.800 -> 0\.800, \+0\.000 \[-0\.020, \+0\.020\]"),
        (comparison(Change(0.2, 0.3, (-0.01, 0.2))), None, [], "may be better by chance alone"),
        (comparison(old=DOWN), agreed(0.97), ["old"], r"untouched class 'old' is worse.*F1 0\.900 -> 0\.700"),
        (comparison(old=DOWN), None, [], None),  # it was corrected: the figure of all decides
        (comparison(), agreed(0.8), ["old"], r"no longer the base's: F1 0\.800 .* of 50 labels in 30 photos"),
        (replace(comparison(), has_negatives=False, cgf1=SAME), None, [], None),
    ],
)
def test_what_speaks_against_a_checkpoint(
    figures: BeforeAfter, guard: Agreement | None, untouched: list[str], said: str | None
) -> None:
    against = tuple(gate.against(figures, guard, untouched))
    verdict = Judgement(figures, guard, tuple(untouched), against)
    assert verdict.passes == (said is None)
    if said is not None:
        (reason,) = verdict.against
        assert re.search(said, reason), reason
    assert ("F1 new (9)", "0.200", "0.800", "+0.600 [+0.400, +0.800]", "0.300 -> 0.900") in verdict.rows()


def test_a_corrected_class_that_next_to_nothing_judges_is_named() -> None:
    figures = comparison()
    few = {"old": replace(figures.classes["old"], objects=1), "new": figures.classes["new"]}
    verdict = Judgement(replace(figures, classes=few), None, (), ())
    assert verdict.hardly_judged.startswith("Hardly judged, by what is held out: old (1 object). ")
    about = {"name": "one", "options": {"method": "lora"}, "base": {"model": "demo"}, "photos": 8, "version": "0.1",
             "created": AT, "classes": ["old"], "touched": ["old"], "photos_held_out": 4,
             "rehearsed": {"photos": 3, "phrases": ["cup"]}}  # fmt: skip
    assert verdict.hardly_judged in card(about, verdict)
    assert "the base is sure of in 3 photos that nobody reviewed, to 1 phrase (cup)." in card(about, verdict)
    assert Judgement(replace(figures, classes=few), agreed(0.97), ("old",), ()).hardly_judged == ""  # the base is asked
    assert Judgement(figures, None, (), ()).hardly_judged == ""
