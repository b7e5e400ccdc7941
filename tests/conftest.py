"""What every test shares: no network, one thread, and tiny random checkpoints, made once a session."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
settings.load_profile("untimed")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def as_many_threads_as_commands() -> Iterator[None]:
    """Torch is left with as many threads as the commands that tests start have: scores are compared bit by bit."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with a random SAM 3 that runs an image in some tens of milliseconds."""
    from random_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "tiny", seed=0)


@pytest.fixture(scope="session")
def least_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_checkpoint`, and three times as fast: for whole runs."""
    from random_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "least", "least", seed=0)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """A process that forks `sam3label` commands and jobs for tests to kill, one a session."""
    from support.nursery import Nursery

    with Nursery() as started:
        yield started


@pytest.fixture(scope="session")
def fo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`fiftyone` on a fresh database that goes with the session.

    Every test that imports it in this process takes it from here: it reads its database's address when it is imported.
    """
    from support.reviewing import point_fiftyone_at, start_mongod, stop

    folder = tmp_path_factory.mktemp("mongod")
    process, uri = start_mongod(folder)
    point_fiftyone_at(uri, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # strawberry's, while fiftyone is imported
        import fiftyone
        import fiftyone.core.session

        fiftyone.list_datasets()  # the first connection has warnings of its own
    yield fiftyone
    fiftyone.core.odm.database._disconnect()
    stop(process)


@pytest.fixture(scope="session")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 endpoint on loopback: moto's server, in a process of its own, one a session."""
    from support.objects import s3_server

    with s3_server(tmp_path_factory.mktemp("moto") / "log") as store:
        yield store


@pytest.fixture
def s3(s3_store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """That endpoint where the libraries look for one, and an empty cache."""
    from support.objects import CREDENTIALS, forget_connections

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_store.url)
    monkeypatch.setenv("SAM3LABEL_CACHE", str(tmp_path_factory.mktemp("cache")))
    forget_connections()
    yield s3_store
    forget_connections()


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience with storage than users have."""
    monkeypatch.setattr("sam3label.media.storage.PAUSES", (0.01, 0.02, 0.05, 0.1))
