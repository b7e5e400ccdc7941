"""What every test shares: no network, two threads, and one tiny random checkpoint a session."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with a random SAM 3 that runs an image in some tens of milliseconds."""
    import torch
    from random_checkpoint import make_checkpoint

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as many as the commands that tests start
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "tiny", seed=0)


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
