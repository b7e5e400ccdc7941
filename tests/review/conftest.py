"""FiftyOne on a MongoDB of this session's own."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from support.reviewing import point_fiftyone_at, start_mongod, stop


@pytest.fixture(scope="session")
def fo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`fiftyone` on a fresh database that goes with the session."""
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


@pytest.fixture
def name(fo: Any) -> Iterator[str]:
    """A dataset name of the test's own; what was made under it goes afterwards."""
    chosen = f"t{uuid.uuid4().hex[:12]}"
    yield chosen
    for made in fo.list_datasets():
        if made.startswith(chosen):
            fo.delete_dataset(made)
