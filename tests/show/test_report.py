"""The report in a real browser: it asks for nothing, counts as `select` counts, and shows what it says."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle, unit
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import dump_concepts, parse_concepts
from sam3label.core import masks
from sam3label.core.records import (
    Candidate,
    Concept,
    ConceptList,
    Correction,
    MediaItem,
    Rle,
    UnitResult,
    Verdict,
    Verify,
)
from sam3label.errors import OutputError, StoreError
from sam3label.review.reasons import EXPLAINED
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Store
from sam3label.show.report import collect
from sam3label.show.report import write_report as write_report_of
from sam3label.show.report_counts import MAX_EMBEDDED
from sam3label.verify.reliability import Reliability


def write_report(run_folder: Path, path: Path, concepts: ConceptList | None = None) -> None:
    with open_run(run_folder, concepts) as run:
        write_report_of(run, path)


CLASSES = concepts(
    Concept(0, "cat", ("cat", "kitten"), ("fox",)), Concept(1, "dog", ("dog",), conf=0.4, presence=0.3), "<i>cow</i>"
)
HEIGHT, WIDTH = SIZE_HW


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests open the report in a real browser: apt-get install -y chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def make_run(folder: Path, classes: ConceptList, units: list[UnitResult]) -> Path:
    with Store.writer(folder, phrase_prompts(*classes.phrases), {"floor": 0.1}) as store:
        store.write(units)
        store.set_meta("concepts", dump_concepts(classes))
        store.set_meta("info", {"model": "demo", "checkpoint": "sha256:1", "sources": ["a & b"]})
    return folder


def random_unit(photos: Path, number: int) -> UnitResult:
    """A photo with up to seven candidates of random phrases; phrases that are there have a high presence."""
    rng = np.random.default_rng(number)
    name = f"{number:04d}.png"
    presence = np.full((1, len(CLASSES.phrases)), 0.05, np.float32)
    found: list[Candidate] = []
    for query in range(int(rng.integers(0, 8))):
        phrase = int(rng.integers(len(CLASSES.phrases)))
        presence[0, phrase] = max(presence[0, phrase], np.float32(rng.uniform(0.2, 1)))
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 4, 4), (50, 40, 30, 20)))
        score, sure = float(np.float32(rng.uniform(0.1, 1))), float(presence[0, phrase])
        found.append(
            candidate(CLASSES.phrases[phrase], score, rectangle(x, y, w, h), item_id=name, query=query, presence=sure)
        )
    return UnitResult(MediaItem(name, str(photos / name)), 0, 1, SIZE_HW, tuple(found), presence)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, 50 of which are still where they were, and a failure with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    units = [random_unit(folder, n) for n in range(60)]
    for n in range(50):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(
            folder / f"{n:04d}.png"
        )
    units.append(replace(unit("</script><script>alert(1)</script>.jpg", error="truncated"), presence=None))
    return make_run(folder / "run", CLASSES, units)


@pytest.fixture
def page(browser: Browser, run_folder: Path, tmp_path: Path) -> Iterator[Page]:
    """The page of the run, opened from disk; anything it complains about or asks for fails the test."""
    write_report(run_folder, tmp_path / "report.html")
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    opened.goto((tmp_path / "report.html").as_uri())
    assert opened.locator("body").get_attribute("data-ready") == "yes", complaints
    yield opened
    assert complaints == []
    opened.close()


def slide(page: Page, label: str, value: float) -> None:
    page.get_by_label(label, exact=True).evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value
    )


def live_counts(page: Page) -> list[int]:
    return [int(text.replace(",", "")) for text in page.locator(".live-objects").all_inner_texts()]


def labels_of(run_folder: Path, classes: ConceptList) -> list[int]:
    with open_run(run_folder, classes) as run:
        return [objects for objects, _ in run.count_objects().values()]


def test_counts_are_those_of_select(page: Page, run_folder: Path) -> None:
    expected = labels_of(run_folder, CLASSES)
    assert sum(expected) > 30
    assert live_counts(page) == expected
    tiles = page.locator("#tiles .tile").all_inner_texts()
    assert f"{sum(expected)}\nobjects" in tiles
    assert "60\nimages and frames" in tiles and "1\nfailed" in tiles
    assert "sha256:1" in page.locator("#info").inner_text() and "a & b" in page.locator("#info").inner_text()


@pytest.mark.parametrize("conf", [0.2, 0.65, 0.9])
def test_sliders_recount_as_another_threshold_would(page: Page, run_folder: Path, conf: float) -> None:
    slide(page, "conf of cat", conf)
    slide(page, "conf of dog", conf)
    slide(page, "presence of dog", 0.6)
    cat, dog, cow = CLASSES.concepts
    moved = ConceptList((replace(cat, conf=conf), replace(dog, conf=conf, presence=0.6), cow))
    assert live_counts(page) == labels_of(run_folder, moved)
    with open_run(run_folder, moved) as run:
        empty = sum(not image.labels for image in run.images())
    assert f"{empty} of 60 images without a label" in page.locator("#live").inner_text()
    page.locator("#reset").click()
    assert live_counts(page) == labels_of(run_folder, CLASSES)


def test_pictures_load_and_filters_hide(page: Page) -> None:
    figures = page.locator("#gallery-grid figure")
    assert figures.count() == 48
    page.locator("#failures").scroll_into_view_if_needed()
    figures.locator("img").last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].filter(i => i.complete && i.src).every(i => i.naturalWidth === 512)")
    assert 30 < figures.locator("img").count() < 48
    assert figures.locator(".gone").count() == 48 - figures.locator("img").count()
    page.locator("#gallery-filter button", has_text="dog").click()
    shown = page.locator("#gallery-grid figure:visible").all_inner_texts()
    assert 0 < len(shown) < 48 and all("dog" in text for text in shown)
    page.locator("#gallery-filter button", has_text="all").click()
    assert page.locator("#gallery-grid figure:visible").count() == 48


def test_suspicious_cases_come_with_picture_and_reason(page: Page) -> None:
    texts = page.locator("#case-grid figcaption").all_inner_texts()
    near = r"near threshold: cat 0\.\d\d is (a label, just over|left out, just under) the threshold 0\.[45]0"
    assert any(re.search(near, t) for t in texts)
    assert any(
        re.search(r"'(kitten|cat)' is said to be there \(presence .*\), but no cat is labelled", t) for t in texts
    )
    assert page.locator("#case-grid img").count() > 3
    kinds = page.locator("#case-kinds button").all_inner_texts()
    page.locator("#case-kinds button", has_text=kinds[1]).click()
    shown = page.locator("#case-grid figure:visible").all_inner_texts()
    assert 0 < len(shown) <= 6 and all(kinds[1] in text for text in shown)
    assert page.locator("#case-note").inner_text() == EXPLAINED[kinds[1]]


def test_a_click_enlarges_a_picture_and_another_closes_it(page: Page) -> None:
    figure = page.locator("#gallery-grid figure", has=page.locator("img")).first
    small = figure.locator("img").bounding_box()
    figure.locator("button").click()
    large = page.locator("#large img").bounding_box()
    assert small is not None and large is not None and large["width"] > 2 * small["width"]
    assert figure.locator("figcaption div").first.inner_text() in page.locator("#large p").inner_text()
    page.locator("#large img").click()
    assert not page.locator("#large").is_visible()


def test_anchors_land_where_they_say_before_any_picture_was_seen(page: Page) -> None:
    page.set_viewport_size({"width": 1200, "height": 500})
    page.locator("nav a", has_text="failures").click()
    page.wait_for_timeout(300)
    top = page.locator("#failures").evaluate("node => node.getBoundingClientRect().top")
    bottom = page.evaluate("document.documentElement.scrollHeight - innerHeight - scrollY")
    assert abs(top) < 5 or bottom < 5, "at the top, or the page ends before"


def test_the_sliders_values_are_a_concept_list_to_save(page: Page, run_folder: Path, tmp_path: Path) -> None:
    slide(page, "conf of cat", 0.6543)
    slide(page, "presence of dog", 0.25)
    page.locator("summary", has_text="as a concept list").click()
    text = page.locator("#yaml").inner_text()
    cat, dog, cow = CLASSES.concepts
    moved = ConceptList((replace(cat, conf=0.65), replace(dog, presence=0.25), cow))
    assert parse_concepts(text) == moved
    assert live_counts(page) == labels_of(run_folder, moved)
    assert f"sam3label export {run_folder} -c thresholds.yaml" in page.locator("#command").inner_text()
    page.locator("#copy").click()
    page.get_by_role("button", name=re.compile("copied|copy with Ctrl-C")).wait_for()


def test_names_are_shown_as_text_and_never_run(page: Page) -> None:
    assert "<i>cow</i>" in page.locator("#class-table").inner_text()
    assert "</script><script>alert(1)</script>.jpg" in page.locator("#failure-table").inner_text()
    assert page.locator("script").count() == 2


def test_charts_and_co_occurrence_show_the_numbers(page: Page, run_folder: Path) -> None:
    with open_run(run_folder) as run:
        data = collect(run, "x")
        seen = [{label.class_id for label in image.labels} for image in run.images()]
    assert data["together"]["table"][0][1] == sum({0, 1} <= classes for classes in seen)
    assert data["together"]["table"][1][1] == sum(1 in classes for classes in seen)
    cells = page.locator("#together-table tr").nth(1).locator("td").all_inner_texts()
    assert cells[1:] == [str(n) for n in data["together"]["table"][0]]
    for entry in data["classes"]:
        assert sum(entry["size_counts"]) == entry["objects"]
        assert sum(entry["presence_bins"][0]) == 60
        assert sum(entry["presence_bins"][1]) == entry["images"]
    assert page.locator("#chart-grid .card").count() == 3
    assert page.locator("#chart-grid .plot").first.locator("div").count() == 20


def test_ten_thousand_images_open_at_once(browser: Browser, tmp_path: Path) -> None:
    rle = rectangle(5, 5, 20, 20)
    score = np.float32(np.random.default_rng(0).uniform(0.1, 1, (10_000, 12))).astype(float)
    units = [
        unit(
            f"{n:05d}.jpg", *(candidate("cat", s, rle, item_id=f"{n:05d}.jpg", query=q) for q, s in enumerate(score[n]))
        )
        for n in range(10_000)
    ]
    run_folder = make_run(tmp_path / "run", concepts(Concept(0, "cat", ("cat",), iou=1.0, inside="keep")), units)
    write_report(run_folder, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 6e6
    opened = browser.new_page()
    opened.goto((tmp_path / "report.html").as_uri())
    assert opened.locator("body").get_attribute("data-ready") == "yes"
    half = score[::2]
    assert len(half) * 12 <= MAX_EMBEDDED
    assert live_counts(opened) == [int((half >= 0.5).sum())]
    assert "of 1 image in 2 (5,000 of 10,000)" in opened.locator("#slider-note").inner_text()
    opened.close()


# ---- against a truth


def truth_of(path: Path, objects: list[tuple[str, int, Rle]]) -> Path:
    """COCO truth of (file name, category from 1 on, mask)."""
    names = sorted({name for name, _, _ in objects})
    height, width = SIZE_HW
    content = {
        "images": [{"id": i, "file_name": name, "height": height, "width": width} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"), 1)],
        "annotations": [
            {"id": n, "image_id": names.index(name), "category_id": c, "area": masks.area(rle), "iscrowd": 0,
             "bbox": list(masks.box_xywh(rle)), "segmentation": {"size": list(SIZE_HW), "counts": rle.counts.decode()}}
            for n, (name, c, rle) in enumerate(objects, 1)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_misses_false_alarms_and_the_confusion_matrix(browser: Browser, tmp_path: Path) -> None:
    """a.png: a cat that is right and a dog that was missed; b.png: a cat taken for a dog, and a dog out of the blue."""
    left, right = rectangle(2, 5, 20, 20), rectangle(45, 30, 25, 20)
    units = []
    for name, found in {
        "a.png": [("cat", 0.9, left)],
        "b.png": [("dog", 0.8, left), ("dog", 0.7, right)],
    }.items():
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)).save(tmp_path / name)
        own = [candidate(phrase, score, rle, item_id=name, query=q) for q, (phrase, score, rle) in enumerate(found)]
        units.append(replace(unit(name, *own, prompts=2), item=MediaItem(name, str(tmp_path / name))))
    run_folder = make_run(tmp_path / "run", concepts("cat", "dog"), units)
    truth = truth_of(tmp_path / "truth.json", [("a.png", 1, left), ("a.png", 2, right), ("b.png", 1, left)])
    done = CliRunner().invoke(app, ["report", str(run_folder), "--gt", str(truth), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    opened = browser.new_page()
    opened.goto((tmp_path / "r.html").as_uri())
    rows = [row.locator("td").all_inner_texts() for row in opened.locator("#matrix tr").all()[1:]]
    assert rows == [["cat", "1", "1", "0"], ["dog", "0", "0", "1"], ["background", "0", "1", ""]]
    assert "1 missed, 1 false alarms, 1 under another class, by masks" in opened.locator("#truth-note").inner_text()
    texts = [figure.inner_text() for figure in opened.locator("#mistake-grid figcaption").all()]
    assert texts == [
        "dog was missed\na.png",
        "dog 0.70 is not in the truth\nb.png",
        "cat was taken for dog (0.80)\nb.png",
    ]
    assert opened.locator("#mistake-grid img").count() == 3
    opened.locator("#mistake-kinds button", has_text="missed").click()
    assert opened.locator("#mistake-grid figure:visible").count() == 1
    opened.close()


def test_without_a_truth_the_page_does_not_speak_of_one(page: Page) -> None:
    assert not page.locator("#truth-section").is_visible() and not page.locator("#truth-link").is_visible()


# ---- edges


def test_a_run_without_a_single_label(browser: Browser, tmp_path: Path) -> None:
    run_folder = make_run(tmp_path / "run", concepts("cat"), [unit("a.jpg", error="truncated")])
    write_report(run_folder, tmp_path / "report.html")
    opened = browser.new_page()
    opened.goto((tmp_path / "report.html").as_uri())
    assert opened.locator("body").get_attribute("data-ready") == "yes"
    assert "No label in the whole run." in opened.locator("#together-table").inner_text()
    assert "truncated" in opened.locator("#failure-table").inner_text()
    opened.close()


def test_frames_of_a_video_are_images_too(tmp_path: Path) -> None:
    """A video as a folder of frames: counted frame by frame, read once, shown with its frame number."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(10):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * n, np.uint8)).save(folder / f"{n:05d}.png")
    found = [candidate("cat", 0.9, rectangle(n, 5, 20, 20), item_id="clip", frame=n) for n in range(0, 10, 2)]
    item, presence = MediaItem("clip", str(folder), "video"), np.full((10, 1), 0.9, np.float32)
    run_folder = make_run(tmp_path / "run", concepts("cat"), [UnitResult(item, 0, 10, SIZE_HW, tuple(found), presence)])
    with open_run(run_folder) as run:
        data = collect(run, "x")
    assert (data["totals"]["images"], data["totals"]["objects"], data["totals"]["empty"]) == (10, 5, 5)
    assert [g["item"] for g in data["gallery"]] == [f"clip, frame {n}" for n in range(10)]
    assert all(g["picture"] for g in data["gallery"])
    assert sum(data["classes"][0]["presence_bins"][0]) == 10


def test_people_model_and_verifier_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    spots = [rectangle(0, 0, 20, 20), rectangle(30, 0, 20, 20), rectangle(0, 30, 15, 15), rectangle(30, 30, 15, 15)]
    found = [
        candidate("cat", score, spot, query=q)
        for q, (score, spot) in enumerate(zip((0.9, 0.8, 0.7, 0.2), spots, strict=True))
    ]
    wanted = concepts(Concept(0, "cat", ("cat",), verify=Verify("off", 0.5, 0.1)))
    by_agent = candidate("cat", 0.6, rectangle(50, 0, 12, 12), item_id="b.jpg", query=1, source="agent")
    run_folder = make_run(
        tmp_path / "run",
        wanted,
        [unit("a.jpg", *found), unit("b.jpg", candidate("cat", 0.9, spots[0], item_id="b.jpg"), by_agent)],
    )
    known = Reliability(30, 2, 1, 9).to_json()
    with open_run(run_folder) as run:
        run.record([Correction("a.jpg", 0, "approved", found[0].id)])
        run.record_verdicts(
            [
                Verdict("a.jpg", 0, "cat", found[1].id, "right", 0.9, "eyes"),
                Verdict("a.jpg", 0, "cat", found[2].id, "outline", 0.1, "eyes"),
                Verdict("a.jpg", 0, "cat", None, "all", 0.2, "eyes"),
            ]
        )
        run.rely_on({"masks": "eyes", "missing": "eyes"})
        run.keep_note("verifiers", {"eyes": {"masks": known}})
        data = collect(run, "x")["deciders"]
        write_report_of(run, tmp_path / "r.html")
    assert dict(zip(data["columns"], data["table"][0], strict=True)) == {
        "people": 1, "verifier": 1, "agent": 1, "model": 1, "dropped by the verifier": 1, "found by the verifier": 1,
    }  # fmt: skip
    opened = browser.new_page()
    opened.goto((tmp_path / "r.html").as_uri())
    assert (
        "eyes\tmasks\t0.94 of 32\t0.90 of 10\t0.81 (0.53 to 0.94)\t-\tyes"
        in opened.locator("#verifier-table").inner_text()
    )
    opened.close()


def test_corrections_count(tmp_path: Path) -> None:
    found = candidate("cat", 0.9, rectangle(0, 0, 20, 20))
    run_folder = make_run(tmp_path / "run", concepts("cat"), [unit("a.jpg", found)])
    with Store.open(run_folder) as store:
        store.add_corrections([Correction("a.jpg", 0, "deleted", found.id), Correction("a.jpg", 0, "reviewed")])
    with open_run(run_folder) as run:
        data = collect(run, "x")
    assert (data["classes"][0]["objects"], data["totals"]["empty"], data["totals"]["reviewed"]) == (0, 1, 1)


def test_another_concept_list_and_bad_targets(run_folder: Path, tmp_path: Path) -> None:
    stricter = ConceptList(tuple(replace(c, conf=0.8) for c in CLASSES.concepts))
    write_report(run_folder, tmp_path / "r.html", stricter)
    assert '"conf": 0.8' in (tmp_path / "r.html").read_text()
    with pytest.raises(StoreError, match="is not a run folder"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(run_folder, tmp_path / "r.html" / "below.html")


def test_command_line(run_folder: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run_folder)])
    assert done.exit_code == 0, done.output
    assert f"Report: {run_folder / 'report.html'}" in done.output
    assert html.escape(str(run_folder)) in (run_folder / "report.html").read_text()
    assert isinstance(open_run(run_folder), Run)
