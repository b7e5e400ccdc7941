"""The Dockerfile and the compose file, read: nothing here builds them. What they name is there, and what is told works.

That an image is built from them and finds a GPU has to be seen on a machine with Docker's daemon, and a card.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def steps(name: str) -> list[str]:
    """What follows an instruction, each time it comes."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_all_that_a_build_reads_is_there_and_let_through() -> None:
    copied = {source for step in steps("COPY") for source in step.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert copied <= let_through and all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "constraints.txt", "sam3label", project["readme"], *project["license-files"]} <= copied


def test_it_runs_the_program_as_somebody_without_rights_where_photos_are_mounted() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entry,) = steps("ENTRYPOINT")
    assert entry == '["sam3label"]' and "sam3label" in project["scripts"]
    assert steps("USER") == ["labeler"] and steps("WORKDIR")[-1] == "/work"
    lowest = re.search(r"3\.(\d+)", project["requires-python"])
    (image,) = steps("FROM")
    assert lowest and int(re.findall(r"python:3\.(\d+)", image)[0]) >= int(lowest[1])


def test_services_build_with_arguments_and_extras_that_exist_and_share_what_they_must() -> None:
    services = COMPOSE["services"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {step.partition("=")[0] for step in steps("ARG")}
    for service in services.values():
        given = service["build"].get("args", {}) if isinstance(service.get("build"), dict) else {}
        assert given.keys() <= known
        assert set(re.findall(r"\w+", given.get("EXTRAS", ""))) <= project["optional-dependencies"].keys()
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if not volume.startswith(".")}
        assert named <= COMPOSE["volumes"].keys()
        assert set(service.get("depends_on", {})) <= services.keys()
    assert services["label"]["ipc"] == "host"  # decoded photos go through shared memory
    (devices,) = services["label"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]


def test_what_is_told_names_services_that_exist() -> None:
    told = (ROOT / "docs/howto/gpu.md").read_text() + (ROOT / "compose.yaml").read_text()
    called = set(re.findall(r"docker compose run --rm (\w+) ", told))
    assert called == {"label", "review"} <= COMPOSE["services"].keys()
