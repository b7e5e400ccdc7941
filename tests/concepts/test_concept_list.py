"""Concept lists: what is accepted, and each message about what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3label.concepts.concept_list import (
    concepts_from,
    dump_concepts,
    from_phrases,
    load_concepts,
    parse_concepts,
    parse_ontology,
)
from sam3label.core.records import Concept, ConceptList, Condition, Exemplars, Tiles
from sam3label.errors import ConfigError

FULL = """\
path: ../datasets/site
train: images/train
val: images/val
nc: 3
names: {0: person, 1: helmet, 2: forklift}
defaults: {conf: 0.4, iou: 0.6}
concepts:
  helmet:
    prompts: [hard hat, safety helmet]
    not: [baseball cap]
    conf: 0.6
    presence: 0.4
    min_area: 64
    max_instances: 20
    exemplars: refs/helmet/
  forklift: {prompts: [forklift truck]}
exclusive: [[forklift, person]]
"""


def problems(text: str, *overrides: str) -> list[str]:
    """The lines of the message about `text`, a count in front left out."""
    with pytest.raises(ConfigError) as caught:
        parse_concepts(text, "c.yaml", overrides)
    lines = str(caught.value).splitlines()
    if len(lines) > 1:
        assert lines[0] == f"c.yaml: {len(lines) - 1} problems"
        lines = [line.removeprefix("  ") for line in lines[1:]]
    return lines


# ---- accepted ------------------------------------------------------------------------------------------------------


def test_everything_the_format_has(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FULL)
    assert load_concepts(tmp_path / "c.yaml") == ConceptList(
        (
            Concept(0, "person", ("person",), conf=0.4, iou=0.6),
            Concept(
                1,
                "helmet",
                ("hard hat", "safety helmet"),
                ("baseball cap",),
                conf=0.6,
                iou=0.6,
                presence=0.4,
                min_area=64,
                max_instances=20,
                exemplars=Exemplars(str(tmp_path / "refs" / "helmet"), "references"),
            ),
            Concept(2, "forklift", ("forklift truck",), conf=0.4, iou=0.6),
        ),
        (("forklift", "person"),),
    )


@pytest.mark.parametrize(
    "text",
    [
        "[person, helmet]",
        "names: [person, helmet]",
        "names: {0: person, 1: helmet}",
        "names: {1: helmet, 0: person}",
        'names: {"0": person, "1": helmet}',
        "- person\n- helmet\n",
        "names:\n  0: person\n  1: helmet\ndefaults:\nconcepts:\nexclusive:\n",
        "names: [person, helmet]\nconcepts:\n  helmet:\n",
        "\ufeffnames: [person, helmet]".removeprefix("\ufeff"),
        '{"names": ["person", "helmet"]}',
        "train: a\nval: [b]\ntest:\nnc: 2\nnames: ['person', 'helmet']\nroboflow: {workspace: x}\ndownload: |\n  x\n",
    ],
)
def test_ways_to_name_classes(text: str) -> None:
    concepts = parse_concepts(text)
    assert concepts.names == ("person", "helmet") and [c.id for c in concepts.concepts] == [0, 1]
    assert concepts.concepts[0] == Concept(0, "person", ("person",))


def test_one_phrase_may_serve_two_classes() -> None:
    concepts = parse_concepts("names: [a, b]\nconcepts: {a: {prompts: [x]}, b: {prompts: [x]}}\nexclusive: [[a, b]]")
    assert [c.prompts for c in concepts.concepts] == [("x",), ("x",)] and concepts.phrases == ("x",)


def test_merge_keys_and_aliases() -> None:
    text = """
names: [a, b, c]
concepts:
  a: &strict {conf: 0.9, min_area: 5}
  b: {<<: *strict, conf: 0.8}
  c: *strict
"""
    assert [(c.conf, c.min_area) for c in parse_concepts(text).concepts] == [(0.9, 5), (0.8, 5), (0.9, 5)]


def test_one_phrase_needs_no_list() -> None:
    concepts = parse_concepts("names: [helmet]\nconcepts: {helmet: {prompts: hard hat, not: baseball cap}}")
    assert concepts.concepts[0].prompts == ("hard hat",) and concepts.concepts[0].negatives == ("baseball cap",)


def test_numbers_in_every_spelling() -> None:
    text = "names: [a]\nconcepts: {a: {conf: 1e-3, iou: 1, presence: 0, min_area: 1.5e2, max_instances: null}}"
    assert parse_concepts(text).concepts[0] == Concept(0, "a", ("a",), (), 0.001, 1.0, 0.0, 150.0, None)


def test_exemplars(tmp_path: Path) -> None:
    text = """
names: [a, b, c, d]
concepts:
  a: {exemplars: refs/a}
  b: {exemplars: {references: ../refs/b, mode: tokens}, prompts: []}
  c: {exemplars: {labels: /data/partial.json}}
  d: {exemplars: {references: refs/d, share: 0.65, tiles: 2}}
"""
    a, b, c, d = parse_concepts(text, folder=tmp_path / "lists").concepts
    assert a.exemplars == Exemplars(f"{tmp_path}/lists/refs/a", "references", "canvas")
    assert b.exemplars == Exemplars(f"{tmp_path}/refs/b", "references", "tokens") and b.prompts == ()
    assert c.exemplars == Exemplars("/data/partial.json", "labels") and c.prompts == ("c",)
    assert d.exemplars == Exemplars(f"{tmp_path}/lists/refs/d", "references", "canvas", 0.65, 2)
    assert parse_concepts(dump_concepts(ConceptList((a, b, c, d)))).concepts == (a, b, c, d)


def test_a_list_of_twenty_thousand_classes_is_read() -> None:
    names = {i: f"class number {i}" for i in range(20_000)}
    text = json.dumps({"names": [*names.values()], "concepts": {name: {"conf": 0.3} for name in names.values()}})
    assert len(parse_concepts(text).concepts) == 20_000  # in seconds: a square of them would take hours


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert len(problems("\n".join(lines))) == 31  # thirty unknown keys and no names


# ---- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file() -> None:
    concepts = parse_concepts(
        FULL, "c.yaml", ["concepts.helmet.conf=0.7", "defaults.conf=0.3", "concepts.person.prompts=[a man, a woman]"]
    )
    assert [c.conf for c in concepts.concepts] == [0.3, 0.7, 0.3]
    assert concepts.concepts[0].prompts == ("a man", "a woman")


def test_overrides_where_the_file_says_nothing() -> None:
    overrides = [
        "concepts.No. 5.max_instances=1",
        "defaults.presence=0.2",
        "exclusive=[[No. 5, b]]",
        "concepts.b.not=[c]",
    ]
    a, b = parse_concepts("[No. 5, b]", overrides=overrides).concepts
    assert (a.max_instances, a.presence, b.negatives) == (1, 0.2, ("c",))
    assert parse_concepts("[No. 5, b]", overrides=overrides).exclusive == (("No. 5", "b"),)


def test_an_override_can_take_a_limit_away_and_reaches_one_class_of_an_alias() -> None:
    text = "names: [a, b]\nconcepts: {a: &x {max_instances: 3}, b: *x}"
    assert [c.max_instances for c in parse_concepts(text, overrides=["concepts.b.max_instances="]).concepts] == [
        3,
        None,
    ]


@pytest.mark.parametrize(
    "override", ["conf=0.3", "concepts.helmet", "concepts.conf=1", "names=[a]", "=1", "defaults=1"]
)
def test_an_override_of_no_known_form(override: str) -> None:
    assert problems("[helmet]", override) == [
        f"--set {override}: allowed: defaults.KEY=VALUE, concepts.CLASS.KEY=VALUE or exclusive=VALUE"
    ]


def test_problems_of_overrides_are_told_with_those_of_the_file() -> None:
    assert problems("names: [helmet]\ndefaults: {iou: 3}", "concepts.helmet.conf=7", "concepts.helmt.conf=0.7") == [
        "c.yaml:2: defaults.iou: got 3; allowed: a number from 0 to 1",
        "--set concepts.helmt.conf=0.7: concepts: unknown class 'helmt' (did you mean 'helmet'?); allowed: helmet",
        "--set concepts.helmet.conf=7: concepts.helmet.conf: got 7; allowed: a number from 0 to 1",
    ]
    (line,) = problems("[helmet]", "concepts.helmet.prompts=[a")
    assert line.startswith("--set concepts.helmet.prompts=[a: not valid YAML: ")


# ---- refused -------------------------------------------------------------------------------------------------------

HELMET = "names: [person, helmet]\nconcepts:\n  helmet:\n    "
TAB = "not valid YAML: the line begins with a tab; write spaces instead"
TEXT_ONLY = "allowed: text (YAML reads"

REFUSED = {
    # names
    "names: [a, a]": "c.yaml:1: names.1: 'a' is already at c.yaml:1; each may be there once",
    "names:\n- a\n- b\n- a": "c.yaml:4: names.2: 'a' is already at c.yaml:2; each may be there once",
    "names:\n- helmet\n- Helmet": (
        "c.yaml:3: names.1: 'Helmet' and 'helmet' (c.yaml:2) differ only in case, and the model and many tools take "
        "them for one; rename one, or make one class with both as prompts"
    ),
    "names:": "c.yaml:1: names: there are none; allowed: at least one, such as: names: [person, helmet]",
    "names: {}": "c.yaml:1: names: there are none; allowed: at least one, such as: names: [person, helmet]",
    "[]": "c.yaml:1: names: there are none; allowed: at least one, such as: names: [person, helmet]",
    "\n\nnc: 3": "c.yaml:3: names: there are none; allowed: at least one, such as: names: [person, helmet]",
    "names: person": "c.yaml:1: names: got 'person'; allowed: a list, or {0: person, 1: helmet}",
    "person": "c.yaml:1: got 'person'; allowed: a mapping or a list, such as: names: [person, helmet]",
    "names: ['']": "c.yaml:1: names.0: got ''; allowed: text with no space at its ends",
    "names: [' a']": "c.yaml:1: names.0: got ' a'; allowed: text with no space at its ends",
    'names: ["a\\nb"]': "c.yaml:1: names.0: got 'a\\nb'; allowed: one line of text, without '\\n'",
    "names: [no]": f'c.yaml:1: names.0: got no; {TEXT_ONLY} no without quotes as true or false; write "no")',
    "names: {0: On}": f'c.yaml:1: names.0: got On; {TEXT_ONLY} On without quotes as true or false; write "On")',
    "names: [007]": f'c.yaml:1: names.0: got 007; {TEXT_ONLY} 007 without quotes as a number; write "007")',
    "names: [1.5]": f'c.yaml:1: names.0: got 1.5; {TEXT_ONLY} 1.5 without quotes as a number; write "1.5")',
    "names: [null]": f'c.yaml:1: names.0: got null; {TEXT_ONLY} null without quotes as nothing; write "null")',
    "names: [2024-01-31]": (
        f'c.yaml:1: names.0: got 2024-01-31; {TEXT_ONLY} 2024-01-31 without quotes as a date; write "2024-01-31")'
    ),
    "names: [[a, b]]": "c.yaml:1: names.0: got a list of 2; allowed: text",
    "names:\n- a\n-": "c.yaml:3: names.1: got nothing; allowed: text",
    "names: {1: a, 2: b}": ("c.yaml:1: names: got 2 and no 0; allowed: the ids 0 to 1 for 2 classes, none left out"),
    "names: {-1: a, 0: b}": ("c.yaml:1: names: got -1 and no 1; allowed: the ids 0 to 1 for 2 classes, none left out"),
    "names: {0: a, x: b}": "c.yaml:1: names: got the id 'x'; allowed: a whole number from 0",
    "names: {0: a, 1.5: b}": "c.yaml:1: names: got the id 1.5; allowed: a whole number from 0",
    "names: {0: a, true: b}": "c.yaml:1: names: got the id True; allowed: a whole number from 0",
    "names: [a]\nnc: 2": "c.yaml:2: nc: got 2; allowed: 1, the number of names, or leave it out",
    # keys
    "names: [a]\nnames: [b]": "c.yaml:2: the key 'names' is already at c.yaml:1; keep one",
    "names: {0: a, 0: b}": "c.yaml:1: the key '0' is already at c.yaml:1; keep one",
    HELMET + "conf: 0.1\n    conf: 0.2": "c.yaml:5: the key 'conf' is already at c.yaml:4; keep one",
    "names: [a]\nclases: 3": "c.yaml:2: clases: unknown key; allowed: names, defaults, concepts, exclusive",
    "names: [a]\nconcept: {}": (
        "c.yaml:2: concept: unknown key (did you mean 'concepts'?); allowed: names, defaults, concepts, exclusive"
    ),
    "names: [a]\n? [x, y]\n: 1": "c.yaml:2: a key must be a plain word or number",
    HELMET + "prompt: [a]": (
        "c.yaml:4: concepts.helmet.prompt: unknown key (did you mean 'prompts'?); allowed: prompts, not, conf, iou, "
        "presence, min_area, max_instances, inside, snap, exemplars, tile, refine, where, verify, ask"
    ),
    "names: [a]\ndefaults: {confidence: 1}": (
        "c.yaml:2: defaults.confidence: unknown key; "
        "allowed: conf, iou, presence, min_area, max_instances, inside, snap, tile, refine, verify"
    ),
    # concepts
    "names: [person, helmet]\nconcepts:\n  helmt:\n    conf: 0.5": (
        "c.yaml:3: concepts: unknown class 'helmt' (did you mean 'helmet'?); allowed: helmet, person"
    ),
    "names: ['no']\nconcepts: {no: {conf: 0.5}}": (
        "c.yaml:2: concepts: got the key False, which is not text; write class names in quotes"
    ),
    "names: [a]\nconcepts: [a]": "c.yaml:2: concepts: got a list of 1; allowed: class names and their rules",
    "names: [a]\nconcepts: {a: 0.5}": (
        "c.yaml:2: concepts.a: got 0.5; allowed: keys and values (prompts, not, conf, iou, presence, min_area, "
        "max_instances, inside, snap, exemplars, tile, refine, where, verify, ask)"
    ),
    "names: [a]\ndefaults: 0.5": (
        "c.yaml:2: defaults: got 0.5; allowed: keys and values "
        "(conf, iou, presence, min_area, max_instances, inside, snap, tile, refine, verify)"
    ),
    HELMET + "prompts: []": (
        "c.yaml:4: concepts.helmet.prompts: there are none; leave the key out to use the class name as the phrase"
    ),
    HELMET + "prompts:": (
        "c.yaml:4: concepts.helmet.prompts: there are none; leave the key out to use the class name as the phrase"
    ),
    HELMET + "prompts: hard hat, cap": (
        "c.yaml:4: concepts.helmet.prompts: got 'hard hat, cap', which is one phrase; "
        "allowed: [hard hat, cap] for a list, or ['hard hat, cap'] if the comma belongs to the phrase"
    ),
    HELMET + "prompts: 5": (
        "c.yaml:4: concepts.helmet.prompts: got 5; allowed: a phrase, or a list such as [hard hat, safety helmet] "
        '(YAML reads 5 without quotes as a number; write "5")'
    ),
    HELMET + "prompts: ' hat'": (
        "c.yaml:4: concepts.helmet.prompts: got ' hat'; allowed: text with no space at its ends"
    ),
    HELMET + "not: {a: b}": (
        "c.yaml:4: concepts.helmet.not: got a mapping of 1; "
        "allowed: a phrase, or a list such as [hard hat, safety helmet]"
    ),
    HELMET + "not: [Helmet]": (
        "c.yaml:4: concepts.helmet.not: 'Helmet' is also a prompt of helmet; remove it from one of the two"
    ),
    HELMET + "prompts: [hat, 5]": (
        f'c.yaml:4: concepts.helmet.prompts.1: got 5; {TEXT_ONLY} 5 without quotes as a number; write "5")'
    ),
    HELMET + "prompts: [hat, hat]": (
        "c.yaml:4: concepts.helmet.prompts.1: 'hat' is already at c.yaml:4; each may be there once"
    ),
    HELMET + "not: [cap, helmet]": (
        "c.yaml:4: concepts.helmet.not: 'helmet' is also a prompt of helmet; remove it from one of the two"
    ),
    # numbers
    **{
        HELMET + f"{key}: {value}": f"c.yaml:4: concepts.helmet.{key}: got {shown or value}; allowed: {allowed}"
        for key, allowed, values in (
            (
                "conf",
                "a number from 0 to 1",
                {"1.7": "", "-0.1": "", ".nan": "", ".inf": "", "true": "", "high": "'high'"},
            ),
            ("iou", "a number from 0 to 1", {"7": "", "": "nothing", "[1]": "a list of 1"}),
            ("presence", "a number from 0 to 1", {"{}": "an empty mapping"}),
            ("min_area", "an area in pixels, 0 or more", {"-1": "", "1e999": "'1e999'", "small": "'small'"}),
            (
                "max_instances",
                "a whole number from 1, or null for no limit",
                {"0": "", "1.5": "", "true": "", "'3'": ""},
            ),
            ("inside", "keep or drop", {"maybe": "'maybe'", "0.9": ""}),
            (
                "tile",
                "auto, a size in pixels from 32, {size: 1024, overlap: 0.2} with an overlap from 0 to 0.5, or off",
                {
                    "31": "",
                    "true": "",
                    "often": "'often'",
                    "{size: big}": "a mapping of 1",
                    "{overlap: 0.6}": "a mapping of 1",
                },
            ),
        )
        for value, shown in values.items()
    },
    # exemplars
    **{
        HELMET + f"exemplars: {value}": (
            f"c.yaml:4: concepts.helmet.exemplars: got {shown}; "
            "allowed: a folder of references, {references: refs/helmet, mode: canvas}, {labels: partial.json}, "
            "or {objects: boxes.json}"
        )
        for value, shown in {
            "3": "3",
            "[a, b]": "a list of 2",
            "{}": "an empty mapping",
            "{mode: canvas}": "mode",
            "{labels: a, references: b}": "labels, references",
            "{labels: a, mode: tokens}": "labels, mode",
        }.items()
    },
    HELMET + "exemplars: {references: 3}": ("c.yaml:4: concepts.helmet.exemplars.references: got 3; allowed: a path"),
    HELMET + "exemplars: {references: a, mode: crop}": (
        "c.yaml:4: concepts.helmet.exemplars.mode: got 'crop'; allowed: canvas, tokens"
    ),
    HELMET + "exemplars: {references: a, share: 30}": (
        "c.yaml:4: concepts.helmet.exemplars.share: got 30; allowed: a number from 0.3 to 0.95"
    ),
    HELMET + "exemplars: {references: a, tiles: 1.5}": (
        "c.yaml:4: concepts.helmet.exemplars.tiles: got 1.5; allowed: a whole number from 1 to 8"
    ),
    HELMET + "exemplars: {references: a, mode: tokens, tiles: 2}": (
        "c.yaml:4: concepts.helmet.exemplars.tiles: got 2; allowed: it only with mode: canvas"
    ),
    HELMET + "exemplars: {references: a, mod: crop}": (
        "c.yaml:4: concepts.helmet.exemplars.mod: unknown key (did you mean 'mode'?); "
        "allowed: labels, references, objects, mode, share, tiles"
    ),
    # exclusive
    "names: [truck, b]\nexclusive: [[truk, b]]": (
        "c.yaml:2: exclusive.0: unknown class 'truk' (did you mean 'truck'?); allowed: b, truck"
    ),
    "names: [a, b]\nexclusive: [a, b]": (
        "c.yaml:2: exclusive: got a list of 2; allowed: a list of groups of class names, such as [[forklift, truck]]"
    ),
    "names: [a, b]\nexclusive: a": (
        "c.yaml:2: exclusive: got 'a'; allowed: a list of groups of class names, such as [[forklift, truck]]"
    ),
    "names: [a, b]\nexclusive:\n- [a, b]\n- [a]": (
        "c.yaml:4: exclusive.1: got a list of 1; allowed: at least two classes that exclude each other"
    ),
    "names: [a, b]\nexclusive: [[a, a]]": (
        "c.yaml:2: exclusive.0.1: 'a' is already at c.yaml:2; each may be there once"
    ),
    # YAML itself
    "": "c.yaml: the file is empty; it needs at least: names: [person, helmet]",
    "# nothing\n\n": "c.yaml: the file is empty; it needs at least: names: [person, helmet]",
    "names:\n  - a\n  b: c": "c.yaml:3: not valid YAML: did not find expected '-' indicator",
    "names: [a": "c.yaml:2: not valid YAML: did not find expected ',' or ']'",
    "names:\n\t- a": f"c.yaml:2: {TAB}",
    "names: [a]\nconcepts:\n  a:\n  \tconf: 0.5": f"c.yaml:4: {TAB}",
    "names:\n- a\n- @b": "c.yaml:3: not valid YAML: found character that cannot start any token",
    "names: [a]\n---\nnames: [b]": "c.yaml:2: not valid YAML: but found another document",
    "names: *x": "c.yaml:1: not valid YAML: found undefined alias",
    "names: [a\0b]": "c.yaml: not valid YAML: control characters are not allowed",
    "names: &x [a, *x]": "c.yaml:1: an alias refers to the value it is part of",
    "names: [2024-99-99]": "c.yaml:1: cannot read '2024-99-99'; put it in quotes if it is text",
    "names: [!path a]": "c.yaml:1: cannot read 'a'; put it in quotes if it is text",
    "[" * 3000 + "]" * 3000: "c.yaml: nested too deeply",
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_each_mistake_has_its_message(text: str, problem: str) -> None:
    assert problem in problems(text)


def test_one_mistake_gives_one_message() -> None:
    assert [text for text in REFUSED if len(problems(text)) > 1] == []


def test_all_mistakes_come_at_once() -> None:
    text = """
names: {0: person, 1: helmet, 2: person}
defalts: {conf: 2}
defaults: {conf: 2}
concepts:
  helmet: {prompts: [], conf: high, tile: 3}
exclusive: [[helmet]]
"""
    assert [line.split(":")[1] for line in problems(text)] == ["3", "2", "4", "6", "6", "6", "7"]


def test_what_is_in_a_misspelt_class_is_checked_at_once() -> None:
    text = "names: [helmet]\nconcepts:\n  helmt:\n    conf: 7\n    prompt: hat\n    prompts: [hat, hat]\n"
    assert [line.split("; ")[0] for line in problems(text)] == [
        "c.yaml:3: concepts: unknown class 'helmt' (did you mean 'helmet'?)",
        "c.yaml:5: concepts.helmt.prompt: unknown key (did you mean 'prompts'?)",
        "c.yaml:6: concepts.helmt.prompts.1: 'hat' is already at c.yaml:6",
        "c.yaml:4: concepts.helmt.conf: got 7",
    ]


def test_a_very_long_message_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_concepts("names: [a]\n" + "\n".join(f"key{i}: 1" for i in range(80)), "c.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "c.yaml: 80 problems" and lines[-1] == "  ... and 30 more" and len(lines) == 52


# ---- files ---------------------------------------------------------------------------------------------------------


def file_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_concepts(path)
    return str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "concepts.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    assert file_problem(tmp_path / "concepts.yaml") == (f"{tmp_path}/concepts.yaml: not a text file in UTF-8")
    assert file_problem(tmp_path / "concept.yaml") == (
        f"{tmp_path}/concept.yaml: no such file (did you mean 'concepts.yaml'?); `sam3label init` writes one"
    )
    assert file_problem(tmp_path / "no" / "c.yaml") == (
        f"{tmp_path}/no/c.yaml: no such file; `sam3label init` writes one"
    )
    assert file_problem(tmp_path) == f"{tmp_path}: cannot be read: is a directory"


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfnames:\r\n- p\xc3\xa4rson\r\n")
    assert load_concepts(tmp_path / "c.yaml").names == ("pärson",)


# ---- ontologies ----------------------------------------------------------------------------------------------------


def test_an_ontology_gives_phrases_to_classes(tmp_path: Path) -> None:
    text = '{"hard hat": "helmet", "a person": "person", "safety helmet": "helmet"}'
    concepts = parse_ontology(text, ["concepts.helmet.conf=0.7"])
    assert [(c.id, c.name, c.prompts, c.conf) for c in concepts.concepts] == [
        (0, "helmet", ("hard hat", "safety helmet"), 0.7),
        (1, "person", ("a person",), 0.5),
    ]
    (tmp_path / "o.json").write_text(text)
    assert parse_ontology(str(tmp_path / "o.json")).names == ("helmet", "person")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "--ontology: not valid JSON: Expecting property name enclosed in double quotes (line 1, column 2)"),
        ("{}", '--ontology: allowed: phrases and their classes, such as {"hard hat": "helmet"}'),
        ('{"a": 1}', '--ontology: allowed: phrases and their classes, such as {"hard hat": "helmet"}'),
        ('{"a": {"b": "c"}}', '--ontology: allowed: phrases and their classes, such as {"hard hat": "helmet"}'),
        ('{"a": "b", "a": "b"}', "--ontology: given more than once: a; each phrase may be there once"),
        ('{"a": "b", "a": "c"}', "--ontology: given more than once: a; each phrase may be there once"),
        ('{" a": "b"}', "--ontology: concepts.b.prompts.0: got ' a'; allowed: text with no space at its ends"),
        ("nowhere.json", """nowhere.json: no such file; or give it here, as '{"hard hat": "helmet"}'"""),
    ],
)
def test_ontologies_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_ontology(text)
    assert str(caught.value) == problem


# ---- from a program or the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        {"person": None, "helmet": ["hard hat", "safety helmet"]},
        {"person": "person", "helmet": ("hard hat", "safety helmet")},
        {"person": {}, "helmet": {"prompts": ["hard hat", "safety helmet"]}},
        {"names": ["person", "helmet"], "concepts": {"helmet": {"prompts": ["hard hat", "safety helmet"]}}},
    ],
)
def test_a_dict_is_a_concept_list(source: object) -> None:
    expected = ConceptList((Concept(0, "person", ("person",)), Concept(1, "helmet", ("hard hat", "safety helmet"))))
    assert concepts_from(source) == expected


def test_a_list_a_path_and_a_concept_list_are_concept_lists(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: [person, helmet]")
    from_list = concepts_from(["person", "helmet"])
    assert from_list == concepts_from(tmp_path / "c.yaml") == concepts_from(str(tmp_path / "c.yaml"))
    assert concepts_from(from_list) == from_list == from_phrases(["person", "helmet"])
    assert concepts_from(from_list, ["defaults.conf=0.3"]).concepts[1].conf == 0.3  # for every class
    assert concepts_from(from_list, ["concepts.helmet.conf=0.3"]).concepts[1].conf == 0.3


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"a": {"conf": 7}}, "the concept list: concepts.a.conf: got 7; allowed: a number from 0 to 1"),
        (
            {"a": {"prompt": "x"}},
            "the concept list: concepts.a.prompt: unknown key (did you mean 'prompts'?); allowed: prompts, not, conf, "
            "iou, presence, min_area, max_instances, inside, snap, exemplars, tile, refine, where, verify, ask",
        ),
        ([], "the concept list: names: there are none; allowed: at least one, such as: names: [person, helmet]"),
        (
            7,
            "the concept list: got int; allowed: the path of a YAML file, a list of class names, or a dict such as "
            '{"helmet": ["hard hat"]}',
        ),
        ("nowhere.yaml", "nowhere.yaml: no such file; `sam3label init` writes one"),
    ],
)
def test_what_a_program_gives_is_checked(source: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        concepts_from(source)
    assert str(caught.value) == problem


def test_phrases_of_the_command_line_are_classes() -> None:
    concepts = from_phrases(["person", "hard hat"], ["concepts.hard hat.conf=0.7"])
    assert [(c.id, c.name, c.prompts, c.conf) for c in concepts.concepts] == [
        (0, "person", ("person",), 0.5),
        (1, "hard hat", ("hard hat",), 0.7),
    ]
    with pytest.raises(ConfigError, match="-p a: names.1: 'a' is already at -p a; each may be there once"):
        from_phrases(["a", "a"])
    with pytest.raises(ConfigError, match="-p: names: there are none"):
        from_phrases([])


# ---- round trips ---------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12).map(str.strip)
names = st.lists(words.filter(bool), min_size=1, max_size=6, unique_by=str.casefold)
fractions = st.floats(0, 1)
folders = words.filter(lambda word: word.strip("./") == word != "").map(lambda word: f"/x/{word.replace('//', '/')}")
paths = st.builds(Exemplars, folders, st.just("references"), st.sampled_from(["canvas", "tokens"]))
paths |= st.builds(Exemplars, folders, st.just("labels"))
tiles = st.none() | st.just(Tiles(auto=True)) | st.builds(Tiles, st.none() | st.integers(32, 9999), st.floats(0, 0.5))


@st.composite
def concept_lists(draw: st.DrawFn) -> ConceptList:
    classes = draw(names)
    concepts = []
    for number, name in enumerate(classes):
        phrases = draw(st.lists(words.filter(bool), min_size=1, max_size=4, unique_by=str.casefold))
        cut = draw(st.integers(1, len(phrases)))
        rules = draw(st.tuples(fractions, fractions, fractions, st.floats(0, 1e12), st.none() | st.integers(1, 10**6)))
        concepts.append(
            Concept(
                number,
                name,
                tuple(phrases[:cut]),
                tuple(phrases[cut:]),
                *rules,
                draw(st.sampled_from(["keep", "drop"])),
                draw(st.none() | paths),
            )
        )
    groups = st.lists(st.sampled_from(classes), min_size=2, max_size=4, unique=True).map(tuple)
    return ConceptList(tuple(concepts), tuple(draw(st.lists(groups, max_size=3)) if len(classes) > 1 else ()))


@settings(max_examples=200, deadline=None)
@given(concept_lists())
def test_what_is_dumped_loads_back_equal(concepts: ConceptList) -> None:
    assert parse_concepts(dump_concepts(concepts)) == concepts


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text("names: {}[]abc-\n0123.&*!'\"|>#?,", max_size=80))
def test_any_text_is_a_list_or_a_clear_error(text: str) -> None:
    try:
        assert parse_concepts(text).concepts
    except ConfigError as error:
        assert str(error).startswith("concept list")


def test_tiles_are_for_the_list_or_for_a_class() -> None:
    text = """
names: [a, b, c, d]
defaults: {tile: auto}
concepts: {b: {tile: 640}, c: {tile: off}, d: {tile: {size: 512, overlap: 0}}}
"""
    tiles = [concept.tile for concept in parse_concepts(text).concepts]
    assert tiles == [Tiles(auto=True), Tiles(640), None, Tiles(512, 0.0)]


# ---- where ---------------------------------------------------------------------------------------------------------

WHERE = """\
names: [person, hard hat, v1.top]
concepts:
  hard hat: {where: overlaps person.top}
  person: {where: [without hard hat at top, not beside v1.top, inside v1.top.left]}
"""


def test_where_conditions_are_read_and_written_back() -> None:
    read = parse_concepts(WHERE)
    person, hat, _ = read.concepts
    assert hat.where == (Condition("overlaps", "person", "top"),)
    assert person.where == (
        Condition("with", "hard hat", "top", negated=True),
        Condition("beside", "v1.top", negated=True),  # a class may be called so
        Condition("inside", "v1.top", "left"),
    )
    assert parse_concepts(dump_concepts(read)) == read


def test_a_wrong_condition_says_what_is_allowed() -> None:
    found = problems(
        "names: [person, helmet]\nconcepts:\n  person:\n"
        "    where: [touches helmet, with helm, overlaps helmet.middle, 7]\n"
    )
    assert len(found) == 4
    assert found[0].startswith("c.yaml:4: concepts.person.where: got 'touches helmet'; allowed: lines such as overlaps")
    assert found[1] == (
        "c.yaml:4: concepts.person.where: got 'with helm': no class 'helm' (did you mean 'helmet'?); "
        "allowed: helmet, person"
    )
    assert found[2].endswith("; allowed: helmet, person, with .top, .bottom, .left or .right after it")
    assert found[3].startswith("c.yaml:4: concepts.person.where.3: got 7; allowed: text")
