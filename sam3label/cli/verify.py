"""`sam3label verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SPEED,
    MaxCost,
    MaxRequests,
    OtherConcepts,
    PhotosNow,
    Price,
    Quiet,
    RunFolder,
    Vlm,
)
from sam3label.cli.progress import progress_display
from sam3label.cli.run import stop_on_interrupt
from sam3label.cli.tables import console, failure_lines
from sam3label.core.text import count

if TYPE_CHECKING:
    from sam3label.verify.judge import Agenda
    from sam3label.verify.session import Verification


def verify(
    run: RunFolder,
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask this OpenAI-compatible server (http://localhost:8000/v1): photos go there, and nowhere else. "
            "demo is the demo's own verifier, on this machine.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vlm: Vlm = None,
    budget: Annotated[
        int, typer.Option(min=1, help="Ask so many questions, the most useful first.", rich_help_panel=INPUT)
    ] = 500,
    everything: Annotated[
        bool, typer.Option("--all", help="Ask about every class in every photo and every label.", rich_help_panel=INPUT)
    ] = False,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Have so many questions under way at once.", rich_help_panel=SPEED)
    ] = 8,
    timeout: Annotated[float, typer.Option(help="Wait so many seconds for one answer.", rich_help_panel=SPEED)] = 120.0,
    votes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Ask each question so many times where the server gives no log-probabilities.",
            rich_help_panel=MODEL,
        ),
    ] = 1,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    price: Price = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be asked and what it costs, and ask nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Let a vision-language model judge labels; its verdicts count once it agreed with what people reviewed."""
    from sam3label.face import open_run

    screen = console()
    with (
        open_run(run, concepts, photos=photos) as opened,
        progress_display(quiet, "asking the verifier ...") as shown,
        stop_on_interrupt(shown) as stop,
    ):

        def tell(done: int, total: int) -> None:
            shown.step("verify", done, total, "questions")

        made = opened.verify(
            server, vlm, budget=budget, everything=everything, in_flight=in_flight, timeout=timeout, votes=votes,
            max_requests=max_requests, max_cost=max_cost, price=price, dry_run=dry_run,
            on_plan=lambda todo, prices: screen.print(_planned(todo, prices, votes), soft_wrap=True),
            on_progress=tell, on_message=lambda line: screen.print(line, soft_wrap=True), stop=stop,
        )  # fmt: skip
    if made.done is not None:
        screen.print(_finished(made), soft_wrap=True)
    for line in made.trust.sentences() if made.trust else ():
        screen.print(line, soft_wrap=True)
    for line in failure_lines(made.failures):
        screen.print(line, soft_wrap=True)
    if made.interrupted:
        typer.echo("Stopped. Every answer is kept: the same command goes on.", err=True)
        raise typer.Exit(130)
    if made.failures:
        raise typer.Exit(3)


def _planned(todo: Agenda, price: tuple[float, float] | None, votes: int) -> str:
    """Say what would be asked, in how many requests, how many tokens that is, and what it costs."""
    about_labels = len(todo.targets) - todo.about_classes
    requests, tokens = len(todo.targets) * votes, todo.tokens() * votes
    parts = [
        f"{count(len(todo.targets), 'question')} to ask: {todo.about_classes} about a class in a photo, {about_labels} "
        f"about a label; {'at most ' if votes > 1 else ''}{count(requests, 'request')}, about {tokens:,} tokens"
    ]
    if price is not None:
        parts.append(f"about ${todo.cost(price) * votes:.2f}")
    if todo.known:
        parts.append(f"{todo.known:,} answered before")
    if todo.left_out:
        parts.append(f"{todo.left_out:,} beyond the budget (--budget, --all)")
    videos = f" Not asked about: {count(todo.videos, 'video')} (only photos are)." if todo.videos else ""
    return f"{'; '.join(parts)}.{videos}"


def _finished(made: Verification) -> str:
    """Say what was asked, what it came to and what it cost."""
    assert made.done is not None and made.spent is not None  # something was asked
    parts = [
        f"{count(made.done.asked, 'answer')}, {count(made.done.verdicts, 'verdict')} kept, {made.done.unsure} not sure",
        f"{count(made.spent.requests, 'request')}, {made.spent.tokens_in + made.spent.tokens_out:,} tokens",
    ]
    if made.cost is not None:
        parts.append(f"${made.cost:.2f}")
    if made.failures:
        parts.append(f"{count(len(made.failures), 'question')} without an answer: the same command asks again")
    if made.is_spent:
        parts.append("the budget is spent: the same command goes on")
    return "; ".join(parts) + "."
