"""Every way a checkpoint can fail has its own sentence and its next step; the hub's client is the real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import make_checkpoint
from safetensors.torch import load_file, save_file

from sam3label.errors import CheckpointError
from sam3label.model.checkpoint import check_access, resolve
from sam3label.model.weights import load_model, load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage. Files are linked: replace them, do not write into them."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_checkpoint.iterdir():
        os.link(file, copy / file.name)
    return copy


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    replace(folder / "config.json", json.dumps({**config, **changes}).encode())


def edit_weights(folder: Path, edit: Any) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(edit(weights), folder / WEIGHTS, metadata={"format": "pt"})


def refusal(model: Path | str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(str(model), revision)
    return str(caught.value)


def test_local_folder_is_named_by_its_content(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(folder))
    assert checkpoint.identity.startswith("sha256:") and len(checkpoint.identity) == 7 + 64
    assert checkpoint.identity == resolve(str(tiny_checkpoint)).identity  # wherever it lies
    assert checkpoint.weights == (folder / WEIGHTS,)
    other = make_checkpoint(tmp_path / "other", seed=1)
    assert resolve(str(other)).identity != checkpoint.identity
    edit_config(folder, note="an edited config changes the numbers, so it changes the name")
    assert resolve(str(folder)).identity != checkpoint.identity


def test_the_same_seed_gives_the_same_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path / "again", "tiny", seed=0)
    assert resolve(str(again)).identity == resolve(str(tiny_checkpoint)).identity


def test_the_random_checkpoint_is_whole_for_the_library(tiny_checkpoint: Path) -> None:
    from transformers import Sam3Processor, Sam3VideoModel

    _, report = Sam3VideoModel.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert not any(report.values())
    encoded = Sam3Processor.from_pretrained(tiny_checkpoint)(text=["red hat", "xyz"], return_tensors="pt")
    assert encoded["input_ids"].shape == (2, 32)
    assert encoded["attention_mask"].sum(1).tolist() == [4, 5]  # whole words are one token, others spelled


def test_whole_checkpoints_load(folder: Path) -> None:
    model = load_model(resolve(str(folder)))
    stored = load_file(folder / WEIGHTS)
    own = model.state_dict()
    assert all(torch.equal(own[name], stored[f"detector_model.{name}"]) for name in own)
    assert load_tokenizer(resolve(str(folder)))("a red hat")["input_ids"]


def test_shards_are_read(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    names, half = sorted(weights), len(weights) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    checkpoint = resolve(str(folder))
    assert [file.name for file in checkpoint.weights] == list(parts)
    load_model(checkpoint)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of 2 weight files (model-00002-of-00002.safetensors): fetch them again" in refusal(folder)


def test_detector_saved_alone_loads(folder: Path, tmp_path: Path) -> None:
    model = load_model(resolve(str(folder)))
    alone = tmp_path / "alone"
    model.save_pretrained(alone)
    shutil.copy(folder / "tokenizer.json", alone)
    again = load_model(resolve(str(alone)))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


# ---- folders that are not a SAM 3 checkpoint


def test_no_such_folder() -> None:
    assert "no such folder, and not a hub id. Give a folder" in refusal("./nowhere/at/all")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert "is a file of another kind: name sam3.pt, a .safetensors file" in refusal(folder / "config.json")


def test_a_revision_of_a_folder(folder: Path) -> None:
    assert "leave out --revision v2" in refusal(folder, "v2")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json: name a folder in the layout of huggingface.co/facebook/sam3" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_config(folder: Path, content: bytes) -> None:
    replace(folder / "config.json", content)
    assert "config.json" in refusal(folder) and refusal(folder).endswith("fetch it again.")


@pytest.mark.parametrize("family", ["sam2_video", "clip", None])
def test_another_model_family(folder: Path, family: str | None) -> None:
    edit_config(folder, model_type=family)
    assert f"holds a {family!r} model, and this program runs SAM 3 only" in refusal(folder)


def test_config_of_no_detector(folder: Path) -> None:
    edit_config(
        folder, detector_config={"model_type": "sam3", "vision_config": {"hidden_act": 7, "fpn_hidden_size": -3}}
    )
    with pytest.raises(CheckpointError, match="does not describe a SAM 3 detector that can be built"):
        load_model(resolve(str(folder)))


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "has no weights (model.safetensors): download the checkpoint again" in refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer (tokenizer.json)" in refusal(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    replace(folder / "tokenizer.json", b"{}")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read .* fetch it again"):
        load_tokenizer(resolve(str(folder)))


def test_pickles_are_not_read(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "a pickle can run any code: only model.safetensors is read" in refusal(folder)


def test_pickle_under_another_name(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.zeros(1)}, folder / WEIGHTS)
    assert "is a PyTorch pickle under another name, not safetensors" in refusal(folder)


def test_git_lfs_pointer(folder: Path) -> None:
    replace(folder / WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3439938512\n")
    assert "is a git-lfs pointer, not the weights: run `git lfs pull`" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    replace(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:keep])
    assert "is not a whole safetensors file" in refusal(folder) and "download it again" in refusal(folder)


def test_garbage_weights(folder: Path) -> None:
    replace(folder / WEIGHTS, b"not weights at all" * 100)
    assert "is not a whole safetensors file" in refusal(folder)


# ---- weights that are not all of the detector's


def weights_refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(resolve(str(folder)))
    return str(caught.value)


def test_missing_weights_are_named(folder: Path) -> None:
    gone = "detector_model.detr_decoder.presence_token.weight"
    edit_weights(folder, lambda weights: {name: value for name, value in weights.items() if name != gone})
    message = weights_refusal(folder)
    assert "1 weights missing (detr_decoder.presence_token.weight)" in message
    assert "use --model facebook/sam3, or fetch it again" in message


def test_renamed_weights_are_refused(folder: Path) -> None:
    """What another release's key names did to others: a model of random weights that runs."""
    edit_weights(folder, lambda weights: {k.replace("detr_encoder.layers", "enc.l"): v for k, v in weights.items()})
    message = weights_refusal(folder)
    assert "weights missing (detr_encoder.layers.0" in message
    assert "weights unexpected (" in message and "enc.l.0" in message and ", ...)" in message


def test_unexpected_detector_weights_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: {**weights, "detector_model.extra_head.weight": torch.zeros(2)})
    assert "1 weights unexpected (" in weights_refusal(folder) and "extra_head.weight" in weights_refusal(folder)


def test_missing_tracker_weights_do_not_matter(folder: Path) -> None:
    edit_weights(folder, lambda weights: {k: v for k, v in weights.items() if k.startswith("detector_model.")})
    name = "detr_decoder.query_embed.weight"
    wanted = load_file(folder / "model.safetensors")[f"detector_model.{name}"]
    assert torch.equal(load_model(resolve(str(folder))).state_dict()[name], wanted.float())


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    name = "detector_model.detr_decoder.query_embed.weight"
    edit_weights(folder, lambda weights: {**weights, name: weights[name][:7].clone()})
    assert "1 weights of another shape (detr_decoder.query_embed.weight (7, 128) instead of (24, 128))" in (
        weights_refusal(folder)
    )


# ---- the hub, by its real client against a server on this machine


class Hub(BaseHTTPRequestHandler):
    """The few answers of huggingface.co that a download needs, errors as it sends them."""

    files: Path
    downloads: list[str]

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "expired":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if "/team/missing" in path:
            return self.refuse(404 if token else 401, "RepoNotFound")
        if "/team/busy" in path:
            return self.refuse(503)
        if "/team/fine-grained" in path:
            return self.refuse(403, "", "Please enable access to public gated repositories")
        if "revision/nope" in path:
            return self.refuse(404, "RevisionNotFound")
        if "/resolve/" in path or path.endswith("/auth-check"):
            if "/team/gated" in path and token != "granted":
                return self.refuse(403 if token else 401, "GatedRepo")
            return self.reply(b"") if path.endswith("/auth-check") else self.file(path.rpartition("/")[2])
        if path.startswith("/api/models/team/") and "/tree/" not in path:
            return self.reply(json.dumps({"id": "team/model", "sha": COMMIT, "siblings": []}).encode())
        if "/tree/" not in path:
            return self.refuse(404)
        entries = [
            {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"{n:040x}"}
            for n, f in enumerate(sorted(self.files.iterdir()))
        ]
        return self.reply(json.dumps(entries).encode())

    def file(self, name: str) -> None:
        if self.command == "GET":
            self.downloads.append(name)
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        self.reply((self.files / name).read_bytes(), headers, "application/octet-stream")

    def reply(self, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/json") -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), "Content-Type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        for key, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    files = tmp_path_factory.mktemp("hub") / "files"
    shutil.copytree(tiny_checkpoint, files)
    (files / "sam3.pt").write_bytes(b"another format of the same weights: not needed")
    Hub.files, Hub.downloads = files, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


ASK = """
import json, sys
from sam3label.model.checkpoint import check_access, resolve, resolve_here
from sam3label.errors import CheckpointError
here = lambda *a: resolve_here(*a).source
ask = {"resolve": lambda *a: resolve(*a).source, "resolve_here": here, "check_access": check_access}
answers = []
for what, model, revision in json.loads(sys.argv[1]):
    try:
        answers.append(ask[what](model, revision))
    except CheckpointError as error:
        answers.append("refused: " + str(error))
print(json.dumps(answers))
"""


def ask(questions: list[tuple[str, str, str | None]], home: Path, **environment: str) -> list[str]:
    """The answers of a fresh process: the hub's client reads its settings when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-c", ASK, json.dumps(questions)]
    done = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_hub_download_is_named_by_commit_and_fetches_only_what_is_needed(hub: str, tmp_path: Path) -> None:
    questions = [
        ("check_access", "team/model", None),
        ("resolve_here", "team/model", None),
        ("resolve", "team/model", None),
        ("resolve", "team/model", "v1"),
        ("resolve_here", "team/model", None),
    ]
    Hub.downloads.clear()
    answers = ask(questions, tmp_path, HF_ENDPOINT=hub)
    assert answers == [
        "team/model: access granted, not downloaded yet",
        "refused: the weights of team/model are not on this machine.",
        f"team/model@{COMMIT}",
        f"team/model@{COMMIT}",
        f"team/model@{COMMIT}",
    ]
    assert sorted(Hub.downloads) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    offline = ask([("resolve", "team/model", None)], tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert offline == [f"team/model@{COMMIT}"]  # the cache needs no network


@pytest.mark.parametrize("what", ["resolve", "check_access"])
def test_hub_refusals_without_a_token(hub: str, tmp_path: Path, what: str) -> None:
    gated, missing, busy = ask(
        [(what, f"team/{name}", None) for name in ("gated", "missing", "busy")], tmp_path, HF_ENDPOINT=hub
    )
    assert gated.startswith(
        "refused: team/gated is gated and you are not logged in: request access at https://huggingface"
    )
    assert "`hf auth login`" in gated and "--model demo" in gated
    assert missing.startswith("refused: there is no model team/missing on the hub that you may see: check the spelling")
    assert "If it is private, run `hf auth login` first." in missing
    assert busy == "refused: the hub answered HTTP 503 for team/busy: try again later, or name a local folder."


@pytest.mark.parametrize("what", ["resolve", "check_access"])
def test_hub_refusals_with_a_token(hub: str, tmp_path: Path, what: str) -> None:
    questions = [(what, f"team/{name}", None) for name in ("gated", "missing", "fine-grained")]
    gated, missing, narrow = ask(questions, tmp_path, HF_ENDPOINT=hub, HF_TOKEN="waiting")
    assert gated.startswith(
        "refused: your Hugging Face account has no access to team/gated yet: request it at https://"
    )
    assert "no model team/missing" in missing and "login" not in missing
    assert "refused your token for team/fine-grained (HTTP 403)" in narrow
    assert "a fine-grained token needs read access to gated repositories" in narrow
    (expired,) = ask([(what, "team/model", None)], tmp_path, HF_ENDPOINT=hub, HF_TOKEN="expired")
    assert "refused your token for team/model (HTTP 401): renew it with `hf auth login`" in expired


def test_hub_access_granted(hub: str, tmp_path: Path) -> None:
    answers = ask([("resolve", "team/gated", None)], tmp_path, HF_ENDPOINT=hub, HF_TOKEN="granted")
    assert answers == [f"team/gated@{COMMIT}"]


def test_hub_has_no_such_revision(hub: str, tmp_path: Path) -> None:
    (answer,) = ask([("resolve", "team/model", "nope")], tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith(
        "refused: team/model has no revision 'nope': see https://huggingface.co/team/model/commits"
    )


def test_no_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    for answer in ask(
        [("resolve", "team/model", None), ("check_access", "team/model", None)], tmp_path, HF_ENDPOINT=closed
    ):
        assert answer.startswith("refused: ") and "team/model" in answer and "check" in answer and "network" in answer


def test_offline_by_setting(tmp_path: Path) -> None:
    questions = [("resolve", "team/model", None), ("check_access", "team/model", None)]
    for answer in ask(questions, tmp_path, HF_HUB_OFFLINE="1"):
        assert answer.startswith("refused: team/model is not in the local cache and HF_HUB_OFFLINE is set: unset it")


def test_check_access_of_what_is_no_hub_id() -> None:
    with pytest.raises(CheckpointError, match="not a hub id"):
        check_access("no such thing", None)


# ---- tampered checkpoints


def _index_of(folder: Path, content: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(content)


@pytest.mark.parametrize(
    "name", ["7", '["a"]', '{"a": 1}', "null", '"../other.safetensors"', '"/etc/passwd"', '"a.bin"']
)
def test_an_index_names_files_beside_it_or_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "other.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    _index_of(folder, f'{{"weight_map": {{"a.weight": {name}}}}}')
    assert "as a file of weights, which is no .safetensors file beside it: fetch it again." in refusal(folder)


@pytest.mark.parametrize("depth", [40, 900, 5_000, 100_000])
def test_settings_nested_deep_are_refused_in_a_sentence(folder: Path, depth: int) -> None:
    nest = "[" * depth + "]" * depth
    replace(folder / "config.json", f'{{"model_type": "sam3_video", "x": {nest}}}'.encode())
    assert refusal(folder).endswith("is nested more than 32 levels deep, as no checkpoint's is: fetch it again.")


@pytest.mark.parametrize("depth", [40, 5_000, 100_000])
def test_an_index_nested_deep_is_refused_in_a_sentence(folder: Path, depth: int) -> None:
    _index_of(folder, '{"weight_map": {"a": ' + "[" * depth + "]" * depth + "}}")
    assert "is nested more than 32 levels deep" in refusal(folder)


def _edit_encoder(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["detector_config"]["vision_config"]["backbone_config"] |= changes
    replace(folder / "config.json", json.dumps(config).encode())


def test_a_million_layers_are_refused_before_they_are_built(folder: Path) -> None:
    _edit_encoder(folder, num_hidden_layers=10**6)
    assert "backbone_config.num_hidden_layers is 1000000, and SAM 3's is 32. Fetch" in refusal(folder)


@pytest.mark.parametrize("value", ["x", [1], True])
def test_a_size_that_is_no_number_is_named(folder: Path, value: Any) -> None:
    _edit_encoder(folder, hidden_size=value)
    assert f"backbone_config.hidden_size is {str(value)!r}, not a number. Fetch" in refusal(folder)
