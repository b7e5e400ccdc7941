"""What every test shares: no network, two threads, and one tiny random checkpoint a session."""

from __future__ import annotations

import os
from pathlib import Path

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
