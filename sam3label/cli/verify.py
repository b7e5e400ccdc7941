"""`sam3label verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import INPUT, MODEL, OUTPUT, SPEED, OtherConcepts, PhotosNow, Quiet, RunFolder
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import console
from sam3label.core.text import count, one_line

if TYPE_CHECKING:
    from sam3label.verify.judge import Agenda, Done
    from sam3label.verify.server import Server

SHOWN_FAILURES = 20


def verify(
    run_folder: RunFolder,
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask this OpenAI-compatible server (http://localhost:8000/v1): photos go there, and nowhere else.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vlm: Annotated[
        str | None, typer.Option(help="Ask this model of the server.", metavar="NAME", rich_help_panel=MODEL)
    ] = None,
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
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Send no more requests than this.", rich_help_panel=SPEED)
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop at so many US dollars; it needs --price.", rich_help_panel=SPEED)
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="Count with these US dollars for a million tokens in and out.", rich_help_panel=SPEED
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be asked and what it costs, and ask nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Let a vision-language model judge labels; its verdicts count once it agreed with what people reviewed."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.errors import ConfigError
    from sam3label.run.reader import open_run
    from sam3label.verify import judge, reliability
    from sam3label.verify.server import Server, ServerOptions, parse_price

    prices = None if price is None else parse_price(price)
    screen = console()
    with open_run(run_folder, load_concepts(concepts) if concepts else None, photos) as run:
        name = judge.verifier_of(vlm or "?")
        todo = judge.plan(run, name, None if everything else budget)
        screen.print(_planned(todo, prices), soft_wrap=True)
        if dry_run:
            return
        if server is None or vlm is None:
            raise ConfigError(
                "say which server to ask and which of its models: --server http://localhost:8000/v1 --vlm NAME"
            )
        options = ServerOptions(
            server, vlm, in_flight, timeout, votes=votes, max_requests=max_requests, max_cost=max_cost, price=prices
        )
        failed: list[tuple[str, str]] = []
        with Server(options) as asked, progress_display(quiet, "asking the verifier ...") as shown:
            if todo.targets:
                shown.say(f"Photos of this run are sent to {server}, and nowhere else.")
            done = None
            for done in judge.verify(run, todo, asked, name):
                shown.step("verify", done.asked, len(todo.targets), "questions")
            if done is not None:
                failed = done.failed or []
                screen.print(_finished(done, asked), soft_wrap=True)
        known = reliability.score(run, name)
        reliability.keep(run, name, known)
        for line in known.sentences():
            screen.print(line, soft_wrap=True)
    for item_id, reason in failed[:SHOWN_FAILURES]:
        screen.print(f"failed  {one_line(item_id)}: {one_line(reason)}", soft_wrap=True)
    if failed:
        raise typer.Exit(3)


def _planned(todo: Agenda, price: tuple[float, float] | None) -> str:
    """Say what would be asked, how many tokens that is, and what it costs."""
    about_labels = len(todo.targets) - todo.about_classes
    tokens = todo.tokens()
    parts = [
        f"{count(len(todo.targets), 'question')} to ask: {todo.about_classes} about a class in a photo, {about_labels} "
        f"about a label; about {tokens:,} tokens"
    ]
    if price is not None:
        parts.append(f"about ${tokens * price[0] / 1e6 + len(todo.targets) * 20 * price[1] / 1e6:.2f}")
    if todo.known:
        parts.append(f"{todo.known:,} answered before")
    if todo.left_out:
        parts.append(f"{todo.left_out:,} beyond the budget (--budget, --all)")
    return "; ".join(parts) + "."


def _finished(done: Done, server: Server) -> str:
    spent, failed = server.spent, len(done.failed or ())
    cost = server.options.cost(spent.tokens_in, spent.tokens_out)
    parts = [
        f"{count(done.asked, 'answer')}, {count(done.verdicts, 'verdict')} kept, {done.unsure} not sure",
        f"{count(spent.requests, 'request')}, {spent.tokens_in + spent.tokens_out:,} tokens",
    ]
    if server.options.price is not None:
        parts.append(f"${cost:.2f}")
    if failed:
        parts.append(f"{count(failed, 'question')} without an answer: the same command asks again")
    if server.is_spent:
        parts.append("the budget is spent: the same command goes on")
    return "; ".join(parts) + "."
