"""The prompts that a run ever asked, and the questions made of them: which prompts a unit was asked, by number.

A prompt's number is its row in the store and never changes. A question is a set of these numbers with the exemplars
that counted when it was asked; few questions are shared by many units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from sam3label.core.records import Prompt, Source
from sam3label.run.asked import Asked, guide_of, in_tracking, of_classes, renamed
from sam3label.run.database import Database
from sam3label.run.rows import one_of


class PromptRows:
    """A store's prompts. `listed` are those that count now; `place` says by number where each of them stands."""

    def __init__(self, db: Database, guides: Mapping[str, str]) -> None:
        self._db = db
        self.guides = guides  # class -> digest of its exemplars
        self.numbers: dict[str, int] = {}  # by the prompt's identity
        self._questions: dict[tuple[int, ...], int] = {}  # by the prompts' numbers, with the guides that count now
        self._asked: dict[int, tuple[Asked, tuple[int, ...]]] = {}  # by question: what, and the prompts' numbers
        known = self._read()
        self._list(tuple(p for p in known if p.digest == guides.get(guide_of(p), "")))

    def _read(self) -> tuple[Prompt, ...]:
        known = {}
        for number, key, text, source, name, digest in self._db.rows(
            "SELECT id, key, text, source, class_name, digest FROM prompts ORDER BY id"
        ):
            prompt = Prompt(key, text, cast(Source, one_of(source, get_args(Source))), name, digest)
            known[prompt.identity] = prompt
            self.numbers[prompt.identity] = number
        return tuple(known.values())

    def _list(self, prompts: tuple[Prompt, ...]) -> None:
        self.listed = prompts
        self.place = {self.numbers[p.identity]: i for i, p in enumerate(prompts)}
        self.by_key = {p.key: self.numbers[p.identity] for p in prompts}

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Write the prompts that were never asked. Part of the caller's transaction."""
        for prompt in prompts:
            if prompt.identity not in self.numbers:
                self.numbers[prompt.identity] = len(self.numbers)
                self._db.execute(
                    "INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?)",
                    (self.numbers[prompt.identity], prompt.key, prompt.text, prompt.source, prompt.class_name,
                     prompt.digest),
                )  # fmt: skip

    def ask(self, prompts: Sequence[Prompt], guides: Mapping[str, str]) -> None:
        """Let these prompts, which were added, and these exemplars count from now on."""
        self.guides = guides
        self._questions.clear()
        self._list(tuple(prompts))

    def question(self, numbers: tuple[int, ...]) -> int:
        """Return the number of the question that asks these prompts; it is written if it is new."""
        if numbers not in self._questions:
            self._questions[numbers] = self._written(numbers, self.guides)
        return self._questions[numbers]

    def _written(self, numbers: tuple[int, ...], guides: Mapping[str, str]) -> int:
        values = json.dumps(numbers), json.dumps(guides, sort_keys=True)
        self._db.execute("INSERT OR IGNORE INTO questions (prompts, guides) VALUES (?, ?)", values)
        return int(self._db.execute("SELECT id FROM questions WHERE prompts = ? AND guides = ?", values).fetchone()[0])

    def carried(self, question: int | None) -> dict[int, int]:
        """Return, by the numbers of a tracked clip's prompts, those that count now and are the same in tracking."""
        numbers = self.asked(question)[1]
        now = {in_tracking(p.identity): self.numbers[p.identity] for p in self.listed}
        names = {number: identity for identity, number in self.numbers.items()}
        moved = dict[int, int]()
        for number in reversed(numbers):  # what was asked last
            same = now.get(in_tracking(names[number]), number)
            if same not in (*numbers, *moved.values()):
                moved[number] = same
        return moved

    def question_carried(self, question: int | None, numbers: tuple[int, ...]) -> int:
        """Return the number of the question in which a tracked clip's prompts have these numbers instead."""
        before = self.asked(question)[0]
        same = {name for name, digest in before.in_tracking().guides.items() if digest == self._plain.get(name)}
        return self._written(numbers, {**before.guides, **{name: self.guides[name] for name in same}})

    @property
    def _plain(self) -> Mapping[str, str]:
        return Asked(frozenset(), self.guides).in_tracking().guides

    def renamings(self, guides: Mapping[str, str]) -> dict[str, str]:
        """Return, by their old names, the classes of which no more than the name changes if these exemplars count.

        One is known by its exemplars: the same that a class had which is no longer there, and no other.
        """
        now, found = of_classes(guides), dict[str, str]()
        gone = {name: digest for name, digest in of_classes(self.guides).items() if name not in now}
        for new in now.keys() - self.guides.keys():
            same = [name for name, digest in gone.items() if digest == now[new]]
            twins = [name for name, digest in now.items() if digest == now[new]]
            taken = any(p.class_name == new and p.digest == now[new] for p in self._read())
            if len(same) == len(twins) == 1 and not taken:
                found[same[0]] = new
        return found

    def rename(self, names: Mapping[str, str]) -> None:
        """Give classes with exemplars their new names, by their old ones. Part of the caller's transaction."""
        digests = {name: self.guides[name] for name in names}
        for prompt in self._read():
            name = prompt.class_name
            if name is not None and name in names and prompt.digest == digests[name]:
                self._db.execute(
                    "UPDATE prompts SET key = ?, class_name = ? WHERE id = ?",
                    (renamed(prompt.key, names), names[name], self.numbers.pop(prompt.identity)),
                )
        for question, text in self._db.execute("SELECT id, guides FROM questions").fetchall():
            guides = json.loads(text)
            own = {name: new for name, new in names.items() if guides.get(name) == digests[name]}
            if own:
                now = {own.get(name, name): digest for name, digest in guides.items()}
                self._db.execute(
                    "UPDATE questions SET guides = ? WHERE id = ?", (json.dumps(now, sort_keys=True), question)
                )
        self._asked.clear()
        self._read()

    def undo(self) -> None:
        """Forget which questions were written: their rows went with a transaction."""
        self._questions.clear()

    def asked(self, question: int | None) -> tuple[Asked, tuple[int, ...]]:
        """Return what a question asked, and the numbers of its prompts, rising. None asked nothing."""
        if question is None:
            return Asked(frozenset(), {}), ()
        if question not in self._asked:
            row = self._db.one("SELECT prompts, guides FROM questions WHERE id = ?", (question,))
            if row is None:
                raise ValueError(f"question {question} is missing")
            numbers = tuple(int(number) for number in json.loads(row[0]))
            names = {number: identity for identity, number in self.numbers.items()}
            known = Asked(frozenset(names[number] for number in numbers), dict(json.loads(row[1])))
            self._asked[question] = known, numbers
        return self._asked[question]
