"""The FiftyOne App on a run's review queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam3label.review.fiftyone import connect
from sam3label.review.fiftyone.schema import QUEUE, slug
from sam3label.run.reader import Run

ADDRESS = "127.0.0.1"  # reachable from this machine only


@dataclass(frozen=True, slots=True)
class ReviewApp:
    """A running App: which dataset it shows, in which view (None: all of it), how many samples that has, and where."""

    dataset: str
    view: str | None
    samples: int
    url: str
    session: Any

    def wait(self) -> None:
        """Wait until the process is interrupted."""
        self.session.wait(-1)


def open_app(run: Run, dataset: str | None = None, remote: bool = False, port: int = 5151) -> ReviewApp:
    """Start the App on the review queue, or on the whole dataset where no queue is left; `remote` opens no browser.

    Raises `ReviewUnavailableError`, and `StoreError` or `InputError` when there is no dataset of this run.
    """
    fo = connect.fiftyone()
    chosen = connect.load_dataset(fo, run, dataset)
    queue = chosen.load_saved_view(QUEUE) if chosen.has_saved_view(QUEUE) else chosen
    has_work = queue is not chosen and len(queue) > 0
    session = fo.launch_app(queue if has_work else chosen, port=port, address=ADDRESS, remote=remote)
    query = f"?view={slug(QUEUE)}" if has_work else ""
    url = f"http://{ADDRESS}:{port}/datasets/{chosen.slug}{query}"
    return ReviewApp(chosen.name, QUEUE if has_work else None, len(queue), url, session)
