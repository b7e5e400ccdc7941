"""A run on a real Ray cluster of three nodes: the store of one process, whatever dies, hangs, leaves or joins."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from support.objects import CREDENTIALS, Store
from support.runs import rows
from support.videofiles import clip_pixels, write_video
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import concepts_from, load_concepts, parse_concepts
from sam3label.core.records import MediaItem, Stamp
from sam3label.errors import CheckpointError, ConfigError, ExtraMissingError, Sam3LabelError
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.workers import ray_cluster
from sam3label.labelling.workers.node_checkpoint import (
    CheckpointSource,
    MissingCheckpointError,
    files_of,
    on_this_node,
    pieces_of,
)
from sam3label.labelling.workers.replica import greet
from sam3label.media.stamps import stamp_of
from sam3label.run.reader import open_run
from sam3label.run.store import Store as RunStore

ray = pytest.importorskip("ray")

CONCEPTS = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.3}\nconcepts: {dog: {prompts: [dog, puppy]}}")
PHOTOS, POISON = 32, "007.jpg"
SIZE = 192  # instead of the demo checkpoint's own 128
ODD_DECODER = os.pathsep.join([str(Path(__file__).parents[1] / "support" / "poison"), *sys.path])
AS_IMPORTANT = {"RAY_worker_niceness": "0"}  # as others on the machine: Ray's workers give way to all, and tests wait
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
# Ray's own: what it leaves open, and what it says of environments without accelerators
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photos, and a video of 24 frames."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(PHOTOS):
        cv2.imwrite(str(folder / f"{n:03d}.jpg"), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))
    write_video(folder / "walk.mp4", clip_pixels(24))
    return folder


@pytest.fixture(scope="module")
def alone(photos: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    label(photos, out, tiny_checkpoint)
    return out


@pytest.fixture(scope="module")
def cluster(s3_store: Store) -> Iterator[Any]:
    """Three nodes of one core on this machine, whose decoder aborts on one file, and this process joined to them."""
    from ray.cluster_utils import Cluster

    added = {
        "PYTHONPATH": ODD_DECODER,
        "SAM3LABEL_POISON": f"poisoned/{POISON}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **AS_IMPORTANT,
        "AWS_ENDPOINT_URL": s3_store.url,
        **CREDENTIALS,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in added.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(**NODE)
        made.add_node(**NODE)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
        ray.shutdown()
        made.shutdown()
    del made
    with (
        warnings.catch_warnings()
    ):  # Ray leaves files and processes to the collector, which is not for other tests to meet
        warnings.simplefilter("ignore")
        gc.collect()


def label(photos: Path | str, out: Path, checkpoint: Path, **options: Any) -> tuple[Any, list[str]]:
    chosen = {"model": str(checkpoint), "workers": 0, "floor": 0.2, "clip_frames": 16, "device": "cpu", **options}
    said: list[str] = chosen.pop("said", [])
    stop = chosen.pop("stop", None)
    follow = chosen.pop("on_progress", lambda _: None)
    summary = job.label(
        [photos],
        chosen.pop("concepts", CONCEPTS),
        out,
        LabelOptions(**chosen),
        on_progress=follow,
        on_message=said.append,
        stop=stop,
    )
    return summary, said


def on_cluster(photos: Path | str, out: Path, checkpoint: Path, **options: Any) -> tuple[Any, list[str]]:
    return label(photos, out, checkpoint, **{"ray": "auto", "replicas": 3, "workers": 1, **options})


def actors() -> list[psutil.Process]:
    """The processes of the workers: Ray names them after the class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name().startswith("ray::ModelActor") else []
    return found


# ---- the same store


def test_three_workers_that_are_killed_on_nodes_that_come_and_go_give_the_store_of_one(
    photos: Path, alone: Path, cluster: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    happened: list[str] = []

    def disturb(progress: Any) -> None:
        if progress.finished >= 6 and "kill" not in happened:
            happened.append("kill")
            actors()[0].kill()
        if progress.finished >= 14 and "leave" not in happened:
            happened.append("leave")
            cluster.remove_node(next(n for n in cluster.list_all_nodes() if n is not cluster.head_node))
        elif progress.finished >= 20 and "join" not in happened:
            happened.append("join")
            cluster.add_node(**NODE)

    summary, said = on_cluster(photos, tmp_path / "run", tiny_checkpoint, on_progress=disturb)
    assert happened == ["kill", "leave", "join"]
    assert (summary.progress.done, summary.progress.failed, summary.interrupted) == (PHOTOS + 1, 0, False)
    assert rows(tmp_path / "run") == rows(alone)
    assert any("died" in line for line in said), said
    with RunStore.open(tmp_path / "run") as store:
        ((processor, units),) = store.processors()
        assert units == store.totals().done and processor.device == "cpu" and processor.kind
    assert len(summary.progress.workers) == 3 and sum(w.steps for w in summary.progress.workers) >= PHOTOS + 24


def test_a_photo_that_takes_workers_down_is_one_failed_unit(
    photos: Path, cluster: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "poisoned"
    bad.mkdir()
    for n in range(12):
        (bad / f"{n:03d}.jpg").write_bytes((photos / f"{n:03d}.jpg").read_bytes())
    summary, _ = on_cluster(bad, tmp_path / "run", tiny_checkpoint, replicas=2)
    assert (summary.progress.done, summary.progress.failed) == (11, 1)
    ((name, reason),) = summary.failures
    assert name == POISON
    assert reason == "the worker that labelled it died 3 times (its process ended)"


def test_a_worker_that_hangs_is_ended_and_a_stop_leaves_the_rest_to_the_next_run(
    photos: Path, alone: Path, cluster: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "LEAST_PATIENCE", 4.0)
    monkeypatch.setattr(ray_cluster, "PATIENCE", 0)
    monkeypatch.setattr(ray_cluster, "LOOK_AROUND", 1.0)
    stop, frozen, said = threading.Event(), list[psutil.Process](), list[str]()

    def freeze(progress: Any) -> None:
        if progress.finished >= 6 and not frozen:
            frozen.append(actors()[0])
            frozen[0].suspend()
        if any("no answer for" in line for line in said):
            stop.set()

    photos_only: dict[str, Any] = {"video": "off", "replicas": 2}
    summary, _ = on_cluster(
        photos, tmp_path / "run", tiny_checkpoint, stop=stop, said=said, on_progress=freeze, **photos_only
    )
    assert [line for line in said if "died (no answer for" in line and "will be labelled by others" in line], said
    _, alive = psutil.wait_procs(frozen, timeout=60)
    assert frozen and alive == []
    # a lost worker's photos are tried one by one, and a batch of another make-up rounds in the last digits
    calm = {row[0].id: [c.id for c in row[-1]] for row in rows(alone)}
    held = {row[0].id: [c.id for c in row[-1]] for row in rows(tmp_path / "run")}
    assert summary.interrupted and 6 <= len(held) == summary.progress.done < PHOTOS
    summary, _ = on_cluster(photos, tmp_path / "run", tiny_checkpoint, **photos_only)
    assert (summary.already_done, summary.progress.done) == (len(held), PHOTOS - len(held))
    whole = {row[0].id: [c.id for c in row[-1]] for row in rows(tmp_path / "run")}
    assert whole == held | whole == {row[0].id: calm[row[0].id] for row in rows(alone) if row[0].kind == "image"}


def test_tiles_and_references_and_photos_in_storage_go_through_ray(
    photos: Path, cluster: Any, s3: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "refs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "refs" / f"{name}.jpg").write_bytes((photos / f"02{'ab'.index(name)}.jpg").read_bytes())
    images = [{"id": i, "file_name": f"{name}.jpg", "width": 80, "height": 60} for i, name in enumerate("ab")]
    boxes = [
        {"id": 2 * i + kind, "image_id": i, "category_id": kind, "bbox": [10 + 20 * kind, 5, 20, 30]}
        for i in range(2)
        for kind in range(2)
    ]
    kinds = [{"id": 0, "name": "bolt"}, {"id": 1, "name": "nut"}]
    (tmp_path / "refs" / "labels.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": kinds})
    )
    (tmp_path / "list.yaml").write_text(
        "names: [cat, bolt, nut]\ndefaults: {conf: 0.3}\nconcepts:\n  cat: {tile: 40}\n"
        "  bolt: {prompts: [], exemplars: refs}\n"
        "  nut: {prompts: [], exemplars: {references: refs, mode: tokens}}\n"
    )
    (tmp_path / "photos").mkdir()
    for n in range(6):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes((photos / f"{n:03d}.jpg").read_bytes())
    there = s3.upload(tmp_path / "photos", "through-ray")
    common: dict[str, Any] = {"accept_exemplars": True, "concepts": load_concepts(tmp_path / "list.yaml")}
    label(there, tmp_path / "alone", tiny_checkpoint, **common)
    summary, said = on_cluster(there, tmp_path / "ray", tiny_checkpoint, replicas=2, **common)
    assert rows(tmp_path / "ray") == rows(tmp_path / "alone")
    assert len(rows(tmp_path / "ray")) == summary.progress.done == 6
    for name in ("bolt", "nut"):
        assert any(name in line and "2 references, each labelled from the others" in line for line in said), said
    assert {c.prompt.split(":")[0] for row in rows(tmp_path / "ray") for c in row[-1]} >= {"cat"}


def test_a_run_grows_with_refine_and_another_input_size_as_it_does_alone(
    photos: Path, cluster: Any, tmp_path: Path
) -> None:
    some = tmp_path / "photos"
    some.mkdir()
    for n in range(6):
        (some / f"{n}.jpg").write_bytes((photos / f"{n:03d}.jpg").read_bytes())
    plain = parse_concepts("names: [circle, star]\ndefaults: {conf: 0.3}")
    (tmp_path / "boxes.csv").write_text("image,class,x1,y1,x2,y2\n2.jpg,star,20,20,60,50\n")
    given = f"star: {{exemplars: {{objects: {tmp_path / 'boxes.csv'}}}}}"
    rules = f"defaults: {{conf: 0.3}}\nconcepts: {{circle: {{refine: true}}, {given}}}"
    grown = parse_concepts(f"names: [circle, star, ring]\n{rules}")
    asks = "1 new phrase and 1 phrase with another refine and new exemplars of star ('circle', 'ring') on 6"
    for list_, asked in ((plain, ""), (grown, asks)):
        common: dict[str, Any] = {"concepts": list_, "image_size": SIZE, "floor": 0.05}
        label(some, tmp_path / "alone", Path("demo"), **common)
        summary, said = on_cluster(some, tmp_path / "ray", Path("demo"), replicas=2, **common)
        assert summary.progress.done == 6 and any(asked in line for line in said), said
        assert rows(tmp_path / "ray") == rows(tmp_path / "alone")
    with open_run(tmp_path / "ray") as run:
        assert run.info["image_size"] == SIZE
        found = [c for unit in run.done_units() for c in run.candidates(unit)]
    assert {c.prompt for c in found} >= {"circle", "ring"}
    assert [c.item_id for c in found if c.source == "given"] == ["2.jpg"]


def test_near_copies_are_left_out_by_each_worker_of_what_it_has(
    photos: Path, cluster: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    sources, rng, n_bursts, burst = tmp_path / "bursts", np.random.default_rng(0), 6, 4
    sources.mkdir()
    for n in range(n_bursts * burst):
        pixels = cv2.imread(str(photos / f"{n // burst:03d}.jpg")).astype(int)
        noisy = np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(sources / f"{n:03d}.png"), noisy)
    still = [clip_pixels(12)[n] for n in (0, 0, 0, 0, 6, 6, 6, 6)]
    write_video(sources / "still.mp4", still)
    skip: dict[str, Any] = {"skip_similar": 0.02, "video": "frames", "every": 1}
    bursts = {path.name: n // burst for n, path in enumerate(sorted(sources.iterdir()))}  # the video is one of its own
    killed: list[str] = []

    def labelled_and_left(out: Path) -> tuple[set[tuple[str, int]], dict[tuple[str, int], tuple[str, int]]]:
        with RunStore.open(out) as store:
            kept = {(unit.item.id, unit.frame_start) for unit in store.done_units()}
            return kept, {(item, frame): (like.item_id, like.frame) for item, frame, like in store.skipped()}

    def kill(progress: Any) -> None:
        if progress.finished >= 8 and not killed:
            killed.append("")
            actors()[0].kill()

    label(sources, tmp_path / "alone", tiny_checkpoint, **skip)
    summary, _ = on_cluster(sources, tmp_path / "ray", tiny_checkpoint, replicas=2, **skip)
    calm = labelled_and_left(tmp_path / "ray")
    assert calm == labelled_and_left(tmp_path / "alone")  # a burst and a video are never cut here
    assert len(calm[1]) == n_bursts * (burst - 1) + 6 and summary.progress.failed == 0
    other = parse_concepts("names: [hen]")
    on_cluster(sources, tmp_path / "ray", tiny_checkpoint, replicas=2, concepts=other, **skip)
    assert labelled_and_left(tmp_path / "ray") == calm  # where more is asked, of what is labelled and of nothing else
    on_cluster(sources, tmp_path / "killed", tiny_checkpoint, replicas=2, on_progress=kill, **skip)
    kept, left = labelled_and_left(tmp_path / "killed")
    assert killed and not kept & left.keys() and kept | left.keys() == calm[0] | calm[1].keys()
    assert kept >= calm[0] and set(left.values()) <= kept  # more may be labelled, for no copy of what is not
    assert all(bursts[where[0]] == bursts[like[0]] for where, like in left.items())


def test_objects_that_a_person_shows_are_followed_by_a_worker(
    photos: Path, cluster: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    video = photos / "walk.mp4"
    height, width = clip_pixels(1)[0].shape[:2]
    shown = {
        "images": [{"id": 1, "file_name": "walk.mp4/000004.jpg", "height": height, "width": width}],
        "annotations": [{"id": 70, "image_id": 1, "category_id": 1, "bbox": [8, 6, 24, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "objects.json").write_text(json.dumps(shown))
    rules = "names: [thing]\nconcepts: {thing: {prompts: [], exemplars: {objects: objects.json}}}"
    common: dict[str, Any] = {"video": "track", "concepts": parse_concepts(rules, "c.yaml", (), tmp_path)}
    label(video, tmp_path / "alone", tiny_checkpoint, **common)
    on_cluster(video, tmp_path / "ray", tiny_checkpoint, replicas=1, **common)
    assert rows(tmp_path / "ray") == rows(tmp_path / "alone")
    with open_run(tmp_path / "ray") as run:
        given = {(label.given.id, image.frame) for image in run.images() for label in image.labels if label.given}
    assert given == {("70", frame) for frame in range(4, 4 + len(given))} and given


# ---- this machine alone, from the command line


def start(photos: Path, out: Path, checkpoint: Path) -> subprocess.Popen[str]:
    """Label the photos, a fifth of a second each."""
    arguments = ["run", str(photos), "-p", "cat", "-o", str(out), "--model", str(checkpoint), "--device", "cpu"]
    arguments += ["--ray", "local", "--replicas", "2", "--video", "off", "--batch-size", "1", "--floor", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-m", "sam3label", *arguments],
        env={**os.environ, "PYTHONPATH": ODD_DECODER, "SAM3LABEL_SLOW": "0.2", **AS_IMPORTANT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def labelled(out: Path) -> int:
    try:
        with RunStore.open(out) as store:
            return store.totals().done
    except Sam3LabelError:
        return 0


def wait_for_units(out: Path, process: subprocess.Popen[str], more_than: int) -> None:
    while labelled(out) <= more_than:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_when_the_driver_dies_all_of_it_ends_and_the_same_command_goes_on(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(photos, out, tiny_checkpoint)
    wait_for_units(out, process, 0)
    # the workers, and Ray's own processes but for its agents, which look only now and then whether it is there
    started = [one for one in psutil.Process(process.pid).children(recursive=True) if "Agent" not in one.name()]
    assert sum(one.name().startswith("ray::ModelActor") for one in started) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    killed = labelled(out)
    assert 0 < killed < PHOTOS

    process = start(photos, out, tiny_checkpoint)
    wait_for_units(out, process, killed)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    stopped = labelled(out)
    assert (process.returncode, killed < stopped < PHOTOS) == (130, True), output
    assert f"{killed} images were labelled before" in output or killed == 1, output
    assert "Traceback" not in output and "(raylet)" not in output, output

    process = start(photos, out, tiny_checkpoint)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"{stopped} images were labelled before and left alone" in output
    label(photos, tmp_path / "alone", tiny_checkpoint, concepts=concepts_from(["cat"]), video="off", batch_size=1)
    assert rows(out) == rows(tmp_path / "alone") and len(rows(out)) == PHOTOS


# ---- what is said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ray": "ray://host:10001"}, "is not local, auto or the HOST:PORT"),
        ({"replicas": 2}, "replicas: goes with ray"),
        ({"ray": "local", "replicas": 0}, "replicas: 0 is not a whole number from 1 on"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelOptions(**options)


def test_gpus_stands_for_ray_here(photos: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["run", str(photos), "-p", "cat", "-o", str(tmp_path / "r"), *arguments])
        return result.exit_code, result.output

    assert run("--gpus", "some")[0] == 2
    assert run("--gpus", "2", "--ray", "auto")[0] == 2
    code, output = run("--gpus", "all", "--device", "cpu")
    assert code == 2 and "goes without" in output


def test_without_ray_there_is_one_sentence(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    with pytest.raises(ExtraMissingError, match=r"several GPUs or machines needs .*pip install 'sam3label\[ray\]'"):
        label(photos, tmp_path / "run", tiny_checkpoint, ray="local", replicas=2)
    assert not (tmp_path / "run").exists()


def test_a_node_that_cannot_label_says_why(photos: Path) -> None:
    from importlib.metadata import version

    first = MediaItem("000.jpg", str(photos / "000.jpg"))
    stamp = stamp_of(first)
    assert greet(first, stamp, version("sam3label")).problem == ""
    assert "install the same version on every node" in greet(first, stamp, "9.9").problem
    elsewhere = MediaItem("000.jpg", "/not/mounted/here/000.jpg")
    assert "cannot read /not/mounted/here/000.jpg" in greet(elsewhere, stamp, version("sam3label")).problem
    other = Stamp(1, 1, "0" * 32)
    assert f"has another file at {photos}/000.jpg" in greet(first, other, version("sam3label")).problem


def test_a_run_folder_on_a_network_file_system_is_said(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "network_of", lambda _: "nfs4")
    _, said = label(photos, tmp_path / "run", tiny_checkpoint, limit=1)
    (sentence,) = (line for line in said if "network file system" in line)
    assert "(nfs4), where SQLite's write-ahead log is not safe: the run keeps a rollback journal" in sentence


# ---- the checkpoint on a node


def test_a_checkpoint_is_shipped_once_to_a_node_that_has_none(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam3label.model.checkpoint import resolve

    monkeypatch.setattr("sam3label.model.identity.cache_folder", lambda: tmp_path / "cache")
    whole = resolve(str(tiny_checkpoint))
    source = CheckpointSource.of(str(tiny_checkpoint), None, whole)
    assert on_this_node(source).folder == whole.folder
    absent = CheckpointSource("", None, "/not/here", whole.identity)
    with pytest.raises(MissingCheckpointError):
        on_this_node(absent)
    parts = [(path.name, list(pieces_of(path))) for path in files_of(tiny_checkpoint)]
    shipped = on_this_node(absent, parts)
    assert shipped.identity == whole.identity and shipped.folder.is_relative_to(tmp_path / "cache")
    assert on_this_node(absent).folder == shipped.folder
    other = CheckpointSource("", None, "/not/here", "sha256:" + "0" * 64)
    with pytest.raises(CheckpointError, match="came to this node damaged"):
        on_this_node(other, parts)
