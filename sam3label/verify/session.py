"""One session of verifying a run, from what is worth asking to how far the answers can be trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sam3label.errors import ConfigError, ServerError
from sam3label.run.reader import Run
from sam3label.verify import judge, reliability
from sam3label.verify.judge import Agenda, Done
from sam3label.verify.reliability import VerifierTrust
from sam3label.verify.server import Server, ServerOptions, Spent


@dataclass(frozen=True, slots=True)
class Verification:
    """What a session came to. All but the agenda is None where nothing was asked: by `dry_run`, or nothing was left.

    `cost` is in US dollars, None without a price; `is_spent` says that a budget of requests or dollars ended it.
    """

    agenda: Agenda
    done: Done | None = None
    spent: Spent | None = None
    cost: float | None = None
    is_spent: bool = False
    interrupted: bool = False
    trust: VerifierTrust | None = None

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """Return (item id, reason) of the questions without an answer, which the next session asks again."""
        return tuple(self.done.failed or ()) if self.done else ()


def agenda_of(run: Run, vlm: str | None, budget: int | None) -> Agenda:
    """Return what a session would ask the model `vlm`, best first, and no more than `budget` of it."""
    return judge.plan(run, judge.verifier_of(vlm or "?"), budget)


def verify(
    run: Run,
    todo: Agenda,
    options: ServerOptions,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Verification:
    """Ask what the agenda holds until `stop`, keep the verdicts, and judge the verifier by what people reviewed.

    Raises ServerError where the server cannot be used; what was answered by then is kept and weighed.
    """
    name, done = judge.verifier_of(options.model), None
    stopped = (stop or threading.Event()).is_set
    with Server(options) as server:
        if todo.targets:
            on_message(f"Photos of this run are sent to {options.address}, and nowhere else.")
        try:
            for done in judge.verify(run, todo, server, name, stopped):
                on_progress(done.asked, len(todo.targets))
        except ServerError:
            _weigh(run, name)
            raise
        known = _weigh(run, name)
        interrupted = stopped() and (done is None or done.asked < len(todo.targets))
        cost = None if options.price is None else options.cost(server.spent.tokens_in, server.spent.tokens_out)
        return Verification(todo, done, server.spent, cost, server.is_spent, interrupted, known)


def _weigh(run: Run, name: str) -> VerifierTrust:
    known = reliability.score(run, name)
    reliability.keep(run, name, known)
    return known


def server_options(server: str | None, vlm: str | None, **settings: object) -> ServerOptions:
    """Return where to ask and how hard. Raises `ConfigError` with every problem."""
    if server is None or vlm is None:
        raise ConfigError(
            "say which server to ask and which of its models: --server http://localhost:8000/v1 --vlm NAME"
        )
    return ServerOptions(server, vlm, **settings)  # type: ignore[arg-type]
