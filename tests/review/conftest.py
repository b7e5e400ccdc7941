"""Names for datasets in FiftyOne that go with their test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def name(fo: Any) -> Iterator[str]:
    """A dataset name of the test's own; what was made under it goes afterwards."""
    chosen = f"t{uuid.uuid4().hex[:12]}"
    yield chosen
    for made in fo.list_datasets():
        if made.startswith(chosen):
            fo.delete_dataset(made)
