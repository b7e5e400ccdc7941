"""`sam3label ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SPEED,
    ConceptFile,
    Device,
    MaxCost,
    MaxRequests,
    Model,
    Price,
    Quiet,
    Revision,
    Vlm,
)
from sam3label.cli.progress import progress_display
from sam3label.cli.run import stop_on_interrupt
from sam3label.cli.tables import console, failure_lines
from sam3label.core.text import count

if TYPE_CHECKING:
    from sam3label.verify.asking import Asking


def ask(
    photos: Annotated[
        str, typer.Argument(metavar="PHOTOS", help="A file, a folder, a glob in quotes, or @list.txt; photos only.")
    ],
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[PHRASE]",
            help="Find this, such as 'person without a helmet'. It becomes a class of the run, beside those it has.",
        ),
    ] = None,
    concepts: ConceptFile = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Make or continue this run folder.", rich_help_panel=OUTPUT)
    ] = Path("runs/asked"),
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask this OpenAI-compatible server (http://localhost:8000/v1): photos go there, and nowhere else.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vlm: Vlm = None,
    turns: Annotated[
        int, typer.Option(min=2, help="Let it reply so often about one photo and class.", rich_help_panel=MODEL)
    ] = 10,
    model: Model = "facebook/sam3",
    revision: Revision = None,
    device: Device = "auto",
    in_flight: Annotated[int, typer.Option(min=1, help="Ask about so many photos at once.", rich_help_panel=SPEED)] = 8,
    timeout: Annotated[float, typer.Option(help="Wait so many seconds for one reply.", rich_help_panel=SPEED)] = 120.0,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    price: Price = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take at most this many photos now.", rich_help_panel=INPUT)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Find what no phrase says: a vision-language model uses SAM 3 as its tool, photo by photo."""
    if (what is None) == (concepts is None):
        raise typer.BadParameter("give a phrase, or -c LIST with classes that have ask:", param_hint="PHRASE / -c")
    with progress_display(quiet, "reading the photos ...") as shown, stop_on_interrupt(shown) as stop:
        from sam3label import face

        if quiet and server:
            typer.echo(f"Photos are sent to {server}, and nowhere else.", err=True)

        def tell(done: int, total: int) -> None:
            shown.step("ask", done, total, "photos")

        asked = face.ask(
            photos, what if what is not None else face.Concepts.load(str(concepts)), out, server=server, vlm=vlm,
            turns=turns, price=price, in_flight=in_flight, timeout=timeout, max_requests=max_requests,
            max_cost=max_cost, on_progress=tell, on_message=shown.say, stop=stop,
            model=model, revision=revision, device=device, limit=limit,
        )  # fmt: skip
    with asked:
        made = asked.asking
        assert made is not None  # of the session that just ended
        if not quiet:
            console().print(_finished(made), soft_wrap=True)
    for line in failure_lines(made.failures, "no decision"):
        console().print(line, soft_wrap=True)
    if stop.is_set() and made.interrupted:
        typer.echo(f"Stopped. What was decided is in {out}: the same command goes on.", err=True)
        raise typer.Exit(130)
    if made.failures:
        raise typer.Exit(3)


def _finished(made: Asking) -> str:
    """Say what was asked, what came of it and what it took."""
    parts = [f"{count(made.photos, 'photo')} asked about, {made.before:,} before"]
    parts.append(f"{count(made.selected, 'object')} selected")
    if made.spent is not None:
        parts.append(
            f"{count(made.spent.requests, 'request')}, {made.spent.tokens_in + made.spent.tokens_out:,} tokens"
        )
    if made.failures:
        parts.append(f"{count(len(made.failures), 'photo')} without a decision: the same command asks again")
    if made.is_spent:
        parts.append("the budget is spent: the same command goes on")
    return "; ".join(parts) + "."
