"""A real server is asked 1,000 verdicts, 16 questions in flight, and dies in the middle: what is lost, asked twice?

    python scripts/bench/bench_verify_server.py

`transformers serve` runs a vision-language model of random weights (made here, nothing is downloaded): it tests the
protocol and the load, not sense. What it says is garbage, so each question is asked once more and then "unsure". The
server is killed (SIGKILL) once a third of the verdicts are kept; the command ends with the next step; the server is
started again and the same command goes on. Exits with 1 unless every verdict is there once and nothing was asked twice.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np

from sam3label.concepts.concept_list import concepts_from, dump_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, MediaItem, UnitResult, candidate_id, prompts_of
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

CLASSES = concepts_from(["disc", "ring", "bar"])
MODEL = "tiny-vlm"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}assistant: "
)


def make_model(folder: Path) -> None:
    """Write a LLaVA of some ten thousand random weights, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "</s>", "<image>"]
    vocabulary = {token: n for n, token in enumerate([*special, *letters])}
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16384, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"], vision_feature_layer=-1
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(range(1, len(vocabulary), 4))  # a random reply is soon over
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), tokenizer, patch_size=16, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)


def make_run(folder: Path, photos: int) -> Path:
    """Write a run of small photos with four labels each: seven questions a photo, fourteen verdicts."""
    prompts, units = prompts_of(CLASSES), []
    (folder / "photos").mkdir()
    for n in range(photos):
        path = folder / "photos" / f"{n:04d}.png"
        pixels = np.random.default_rng(n).integers(0, 255, (64, 96, 3), np.uint8)
        cv2.imwrite(str(path), pixels)
        item, found = MediaItem(path.name, str(path)), []
        for k, name in enumerate(("disc", "disc", "ring", "bar")):
            mask = np.zeros((64, 96), np.bool_)
            mask[10 + 10 * k : 18 + 10 * k, 10 + 20 * k : 25 + 20 * k] = True
            rle = masks.encode(mask)
            id_ = candidate_id(item.id, 0, name, k)
            found.append(Candidate(id_, item.id, 0, name, 0.7, 0.9, masks.box_xywh(rle), masks.area(rle), rle))
        presence = np.full((1, len(prompts)), 0.9, np.float32)
        units.append(UnitResult(item, 0, 1, (64, 96), tuple(found), presence))
    with Store.writer(folder / "run", prompts, {"floor": 0.1}) as store:
        store.write(units)
        store.set_meta("concepts", dump_concepts(CLASSES))
    return folder / "run"


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    log = (folder / "server.log").open("ab")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", MODEL, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu"]
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.5)
    server.kill()
    raise SystemExit(f"transformers serve did not start: {(folder / 'server.log').read_text()[-2000:]}")


def verdicts(run: Path) -> int:
    with sqlite3.connect(f"file:{run / DATABASE}?mode=ro", uri=True) as database:
        try:
            return int(database.execute("SELECT count(*) FROM verdicts").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def session(folder: Path, run: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sam3label", "verify", str(run), "--server", f"http://127.0.0.1:{port}/v1"]
    command += ["--vlm", MODEL, "--all", "--in-flight", "16", "-q"]
    return subprocess.Popen(command, cwd=folder, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=72, help="seven questions and fourteen verdicts each")
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / MODEL)
    run, questions = make_run(folder, arguments.photos), 7 * arguments.photos
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start(folder, port)
    begun = time.monotonic()
    first = session(folder, run, port, folder / "first.log")
    while verdicts(run) < 2 * questions // 3 and first.poll() is None:
        time.sleep(0.1)
    server.kill()
    server.wait()
    print(f"killed after {time.monotonic() - begun:.0f} s, with {verdicts(run)} verdicts kept", flush=True)
    code = first.wait(300)
    kept = verdicts(run)
    print(f"the command ended with {code} and {kept} verdicts: {_last_line(folder / 'first.log')}", flush=True)
    server, begun = start(folder, port), time.monotonic()
    again = session(folder, run, port, folder / "again.log").wait(3600)
    server.kill()
    server.wait()
    said = (folder / "again.log").read_text()
    found = re.search(r"([\d,]+) answers?,", said)
    asked = int(found[1].replace(",", "")) if found else -1
    there = verdicts(run)
    print(
        f"the same command ended with {again} in {time.monotonic() - begun:.0f} s: {asked} questions asked", flush=True
    )
    print(f"{questions} questions: {kept // 2} answered before, {asked} after; {there} verdicts")
    if not (code == 1 and again == 0 and kept // 2 + asked == questions and there == 2 * questions):
        raise SystemExit(f"something was lost or asked twice: {said[-2000:]}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    main()
