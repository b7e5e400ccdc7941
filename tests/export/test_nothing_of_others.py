"""An export replaces what it wrote, and nothing that a person, a trainer or another run put into the folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.hardshapes import shape
from support.labelled import concept_list, hard_collection, image, label, tree

from sam3label.core import file_list, masks
from sam3label.core.whole_folder import read_marker, whole_folder
from sam3label.errors import OutputError
from sam3label.export.card import FILE as CARD
from sam3label.export.options import Options
from sam3label.export.write import write_dataset
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.run.store_errors import DATABASE


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(concept_list(), hard_collection(tmp_path / "photos"), "yolo", tmp_path / "set")
    return tmp_path / "set"


def again(out: Path, kind: str = "yolo", **options: bool) -> None:
    images = hard_collection(out.parent / "photos", ("1.jpg",))
    write_dataset(concept_list(), images, kind, out, Options(**options))  # type: ignore[arg-type]


def refused(out: Path, kind: str = "yolo") -> str:
    before = tree(out)
    with pytest.raises(OutputError) as caught:
        again(out, kind)
    assert tree(out) == before and not list(out.parent.glob(".*"))
    return str(caught.value)


def test_untouched_it_is_replaced(dataset: Path) -> None:
    again(dataset, "coco")
    assert (dataset / "annotations/instances_train.json").is_file() and not (dataset / "labels").exists()


def test_weights_and_notes_are_named_and_overwrite_insists(dataset: Path) -> None:
    weights = dataset / "runs/segment/train/weights/best.pt"
    weights.parent.mkdir(parents=True)
    weights.write_text("W")
    (dataset / "NOTES.md").write_text("mine")
    text = refused(dataset)
    assert "set holds what this program did not write: " in text
    assert "runs/segment/train/weights/best.pt" in text and "NOTES.md" in text and "--overwrite" in text
    again(dataset, overwrite=True)
    assert not weights.exists() and not (dataset / "NOTES.md").exists()


@pytest.mark.parametrize("name", ["labels/train/a/1.txt", "data.yaml", CARD])
def test_a_corrected_file_is_named(dataset: Path, name: str) -> None:
    (dataset / name).write_text((dataset / name).read_text() + "\n# by hand\n")
    assert f"{name} (changed)" in refused(dataset)


def test_a_correction_of_the_same_size_is_seen_by_its_content(dataset: Path) -> None:
    path = next(p for p in (dataset / "labels").rglob("*.txt") if p.stat().st_size)
    path.write_text("3" + path.read_text()[1:])
    assert f"{path.relative_to(dataset).as_posix()} (changed)" in refused(dataset)


def test_a_copied_or_touched_dataset_is_still_ours(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere/set"
    shutil.copytree(dataset, copy, copy_function=shutil.copyfile)  # other times, no hard links
    assert file_list.strangers(copy, "sam3label.json", 9) == []


def test_what_trainers_leave_behind_is_no_reason_to_refuse(dataset: Path) -> None:
    for name in ("labels/train.cache", "images/.DS_Store", "images/train/Thumbs.db"):
        (dataset / name).write_text("litter")
    (dataset / "runs").mkdir()  # empty: nothing to lose
    again(dataset)
    assert not (dataset / "labels/train.cache").exists() and (dataset / "data.yaml").is_file()  # made anew


def test_a_run_inside_is_never_replaced(dataset: Path) -> None:
    (dataset / "deep/er").mkdir(parents=True)
    (dataset / "deep/er" / DATABASE).write_text("labels")
    assert file_list.RUN_FILE == DATABASE
    with pytest.raises(
        OutputError, match=r"there is a run in it \(deep/er/run.sqlite\), which an export never replaces"
    ):
        again(dataset, overwrite=True)
    assert (dataset / "deep/er" / DATABASE).read_text() == "labels"


def test_overwrite_is_for_our_datasets_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("precious")
    hard_collection(tmp_path / "photos", ("1.jpg",))
    with pytest.raises(OutputError, match="thesis exists and was not written by sam3label export; it is left alone"):
        again(tmp_path / "thesis", overwrite=True)


def test_what_is_added_while_an_export_runs_stays(dataset: Path) -> None:
    with pytest.raises(OutputError, match=r"did not write: late.txt\."), whole_folder(dataset):
        (dataset / "late.txt").write_text("just now")
    assert (dataset / "late.txt").read_text() == "just now" and read_marker(dataset)


def test_appending_never_makes_a_persons_work_ours(dataset: Path) -> None:
    label_file = dataset / "labels/train/a/1.txt"
    label_file.write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    (dataset / "NOTES.md").write_text("mine")
    (dataset / CARD).write_text("# My own card\n")
    new = image(dataset.parent / "more", "new.jpg", [label(masks.encode(shape("donut")))])
    write_dataset(concept_list(), [new], "yolo", dataset, Options(append=True))
    assert label_file.read_text() == "0 0.1 0.1 0.2 0.1 0.2 0.2\n" and (dataset / CARD).read_text() == "# My own card\n"
    text = refused(dataset)
    assert "labels/train/a/1.txt (changed)" in text and "NOTES.md" in text and f"{CARD} (changed)" in text
    assert "new" not in text.partition("write: ")[2] and "data.yaml" not in text
    marker = read_marker(dataset)
    assert marker is not None and marker["images"] == 12 and len(marker["parts"]) == 2


def test_many_strangers_are_cut_short(dataset: Path) -> None:
    for number in range(30):
        (dataset / f"{number:02}.note").write_text("x")
    assert refused(dataset).count(".note") == 5 and ", ..." in refused(dataset)


def test_a_lost_list_makes_everything_a_stranger(dataset: Path) -> None:
    (dataset / file_list.LIST).unlink()
    assert "--overwrite" in refused(dataset)


# ---- odd places


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    hard_collection(tmp_path / "photos", ("1.jpg",))
    big = tmp_path / "big disk"
    (big / "set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(big / "set")
    for _ in range(2):
        again(tmp_path / "set")
        assert (tmp_path / "set").is_symlink() and (big / "set/data.yaml").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big disk", "photos", "set"]


def test_a_dangling_link_a_circle_and_the_root_are_clear_errors(tmp_path: Path) -> None:
    hard_collection(tmp_path / "photos", ("1.jpg",))
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"dangling is a link to .*gone, which does not exist\. Mount its disk"):
        again(tmp_path / "dangling")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OutputError, match="circle .*Choose another|circle is a link"):
        again(tmp_path / "circle")
    with pytest.raises(OutputError, match="/ cannot be a dataset folder: name a folder of its own"):
        write_dataset(concept_list(), [], "yolo", Path("/"))


def test_the_leftovers_of_dead_exports_of_other_datasets_go_too(tmp_path: Path) -> None:
    hard_collection(tmp_path / "photos", ("1.jpg",))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with whole_folder(tmp_path / "x") as making:
        here = making.name.removeprefix(".x.partial-").rpartition("-")[0]
    leftover = tmp_path / f".other.partial-{here}-{gone.pid}"
    elsewhere = tmp_path / f".other.partial-another{here}-{gone.pid}"  # a machine that shares the disk may be at work
    theirs = tmp_path / f".hidden.partial-{gone.pid}"
    for folder in (leftover, elsewhere, theirs):
        folder.mkdir()
    again(tmp_path / "set")
    assert not leftover.exists() and elsewhere.is_dir() and theirs.is_dir()


# ---- runs


def test_a_run_does_not_go_into_a_dataset_or_among_photos(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"set is a dataset, which the next export replaces.*-o runs/NAME"):
        refuse_unfit(dataset)
    photos = tmp_path / "holiday"
    image(photos, "deep/1.JPG".lower())
    refuse_unfit(photos)  # photos further down are fine: RUN/exports has them too
    image(photos, "1.jpg")
    with pytest.raises(OutputError, match=r"holiday holds photos \(1.jpg\).*-o runs/NAME"):
        refuse_unfit(photos)
    (photos / DATABASE).write_text("")
    refuse_unfit(photos)  # a run that is there already goes on
    refuse_unfit(tmp_path / "new")
