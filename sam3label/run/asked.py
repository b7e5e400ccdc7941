"""What each image was asked, and what is still to be asked of it: pure.

The list of a growing run changes from day to day. A unit keeps the prompts it was asked, and the exemplars its classes
had then; from these follows what a list still needs of it, in whatever order the list grew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sam3label.core.records import ConceptList, Prompt, exemplar_class, exemplar_key, prompts_of

REFINED = ", refined"  # at the end of the digest of exemplars whose class refines its masks
_REFINED_PHRASE = " refined"  # and of such a class's phrases
_TILED = "tiles of\t"  # a tab is in no class's name


def guide_of(prompt: Prompt) -> str:
    """Return the key in `guides` of what a prompt goes with: its class's exemplars, or how a phrase is asked."""
    return prompt.class_name if prompt.class_name is not None else _TILED + prompt.key


def without_refine(digest: str) -> str:
    """Return a prompt's digest as it is where its class does not refine its masks.

    >>> without_refine("partial labels 1f, refined"), without_refine(" refined")
    ('partial labels 1f', '')
    """
    return digest.removesuffix(REFINED).removesuffix(_REFINED_PHRASE)


def in_tracking(identity: str) -> str:
    r"""Return a prompt's identity as it is in tracked videos: tiles and `refine` change nothing there.

    >>> in_tracking("dog\0Tiles(size=512)"), in_tracking("exemplar:dog\0partial labels 1f, refined")
    ('dog', 'exemplar:dog\x00partial labels 1f')
    """
    key, _, digest = identity.partition("\0")
    own = "" if exemplar_class(key) is None else digest.removesuffix(REFINED)
    return f"{key}\0{own}" if own else key


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts, by identity, that a unit was asked, and the digests of its classes' exemplars at that time."""

    prompts: frozenset[str]
    guides: Mapping[str, str]

    def in_tracking(self) -> Asked:
        """Return what a clip of a tracked video was asked, whatever its list said of tiles and `refine`."""
        return Asked(frozenset(map(in_tracking, self.prompts)), _guides_in_tracking(self.guides))

    def renamed(self, names: Mapping[str, str]) -> Asked:
        """Return the same with classes that have other names now, by their old ones."""
        prompts = (renamed(identity, names) for identity in self.prompts)
        return Asked(frozenset(prompts), {names.get(name, name): digest for name, digest in self.guides.items()})


def renamed(key: str, names: Mapping[str, str]) -> str:
    """Return an exemplar prompt's key or identity with its class's new name; others as they are.

    >>> renamed("exemplar:screw\\tsmall thing", {"screw": "bolt"}), renamed("screw", {"screw": "bolt"})
    ('exemplar:bolt\\tsmall thing', 'screw')
    """
    name = exemplar_class(key.partition("\0")[0])
    return (
        key if name is None or name not in names else exemplar_key(names[name]) + key.removeprefix(exemplar_key(name))
    )


def _guides_in_tracking(guides: Mapping[str, str]) -> dict[str, str]:
    return {name: digest.removesuffix(REFINED) for name, digest in of_classes(guides).items()}


def of_classes(guides: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of classes' exemplars alone, by the classes' names."""
    return {name: digest for name, digest in guides.items() if not name.startswith(_TILED)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a concept list asks. `guides` has the digest of each class's exemplars, `askers` the classes of a phrase.

    None among the askers stands for a hard negative, which is asked whatever exemplars there are.
    """

    prompts: tuple[Prompt, ...]
    guides: Mapping[str, str]
    askers: Mapping[str, tuple[str | None, ...]]

    @classmethod
    def of(cls, concepts: ConceptList, guides: Mapping[str, str]) -> Wanted:
        """Return a list's prompts, in its order. Classes without a digest in `guides` go without their exemplars."""
        askers: dict[str, list[str | None]] = defaultdict(list)
        for concept in concepts.concepts:
            for phrase in concept.prompts:
                askers[phrase].append(concept.name)
            for phrase in concept.negatives:
                askers[phrase].append(None)
        guided = (c.name for c in concepts.concepts if c.exemplars is not None or c.ask is not None)
        own = {name: guides[name] for name in guided if name in guides}
        own |= {_TILED + p: repr(c.tile) for c in concepts.concepts if c.tile for p in (*c.prompts, *c.negatives)}
        for phrase in (p for c in concepts.concepts if c.refine for p in c.prompts):
            own[_TILED + phrase] = f"{own.get(_TILED + phrase, '')}{_REFINED_PHRASE}"
        prompts = (
            replace(p, digest=own.get(guide_of(p), ""))
            for p in prompts_of(concepts)
            if p.class_name is None or p.class_name in own
        )
        return cls(tuple(prompts), own, {phrase: tuple(names) for phrase, names in askers.items()})

    def in_tracking(self) -> Wanted:
        """Return what the list asks of tracked videos, which know neither tiles nor `refine`."""
        prompts = (replace(p, digest=in_tracking(p.identity).partition("\0")[2]) for p in self.prompts)
        return Wanted(tuple(prompts), _guides_in_tracking(self.guides), self.askers)

    def missing(self, asked: Asked) -> frozenset[str]:
        """Return keys of the prompts that a unit has no answer for."""
        return frozenset(
            p.key for p in self.prompts if p.identity not in asked.prompts and not self._excused(p, asked.guides)
        )

    def _excused(self, prompt: Prompt, guides: Mapping[str, str]) -> bool:
        """Return whether the same exemplars excuse the unit from the prompt: it has some of the class, or none.

        Nothing excuses from an agent's: a photo without its decision has none.
        """
        if prompt.source == "agent":
            return False
        names = (prompt.class_name,) if prompt.class_name is not None else self.askers[prompt.key]
        return all(
            name in self.guides and guides.get(name) == self.guides[name] for name in names if name is not None
        ) and (None not in names)

    def superseded(self, answered: Collection[str]) -> frozenset[str]:
        """Return phrases whose answers do not count on an image: all their classes asked with exemplars there.

        Objects that are given take nothing from what phrases find beside them.
        """
        guided = {
            p.class_name for p in self.prompts if p.class_name is not None and p.source != "given" and p.key in answered
        }
        return frozenset(phrase for phrase, names in self.askers.items() if guided and guided.issuperset(names))
