"""What each photo is asked: phrases, and exemplars with or without them.

One rule: where a class has exemplars for a photo, its phrases are asked together with these and never alone; where it
has none, its phrases are asked as usual. Partial labels and tokens are asked on the photo itself, in the one encode
that serves all its phrases; a canvas is a picture of its own, one for each photo and class (and tile).

Shape legend: P prompts of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label.concepts.exemplars import Examples, Reference, pixel_digest
from sam3label.core import masks
from sam3label.core.records import BoxPrompt, Candidate, ConceptList, Frame, MediaItem, Prompt, candidate_id
from sam3label.errors import InputError
from sam3label.labelling import canvas, tiling
from sam3label.labelling.given_objects import Shown, masked, shown_on
from sam3label.labelling.refining import refined
from sam3label.labelling.windows import Window, in_image, once
from sam3label.run.asked import REFINED, Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from sam3label.model.ask import Exemplar
    from sam3label.model.detector import Detection, Detector
    from sam3label.model.interactive import Clicker


_SOMEWHERE = BoxPrompt(np.zeros((1, 4), np.float32), (True,))  # boxes that are on some frame of a video


@dataclass(frozen=True, slots=True)
class Question:
    """The exemplars a photo gets, by class: boxes on itself, or the references that are not the photo itself.

    And the objects that are given on it.
    """

    boxes: Mapping[str, BoxPrompt]
    references: Mapping[str, tuple[Reference, ...]]
    given: tuple[Shown, ...] = ()

    def guides(self, class_name: str) -> bool:
        return class_name in self.boxes or class_name in self.references


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the references of a job come down to, so that they are read and encoded once: by (class, its digest)."""

    tokens: Mapping[tuple[str, str], Tensor]  # [N, D] each
    crops: Mapping[tuple[str, str], Sequence[canvas.Crop]]


class Guide:
    """Puts a run's prompts to a detector, photo by photo. Encodes each reference once, and cuts it up once."""

    def __init__(
        self,
        detector: Detector,
        concepts: ConceptList,
        examples: Sequence[Examples] = (),
        clicker: Clicker | None = None,
    ) -> None:
        self.detector, self.concepts, self.clicker = detector, concepts, clicker
        self.examples = [one for one in examples if not one.gives_objects]
        self.objects = [one for one in examples if one.gives_objects]
        self.wanted = Wanted.of(concepts, guides_of(examples))
        self.prompts = self.wanted.prompts
        self._position = {prompt.key: i for i, prompt in enumerate(self.prompts)}
        self._tiler = tiling.Tiler(detector, concepts, self.prompts)
        self._reference_sizes = {reference.size_hw for e in self.examples for reference in e.references}
        self._canvases = [e for e in self.examples if e.references and _mode(e) == "canvas"]
        self._tokens: dict[tuple[str, str], Tensor] = {}  # (class, digest of the reference) -> [N, D]
        self._crops: dict[tuple[str, str], list[canvas.Crop]] = {}

    def alone(self, examples: Examples) -> Guide:
        """Return a guide to one of the classes, its id 0, that shares what this one has encoded and cut up."""
        concept = replace(examples.concept, id=0)
        guide = Guide(self.detector, ConceptList((concept,)), [replace(examples, concept=concept)])
        guide._tokens, guide._crops = self._tokens, self._crops
        return guide

    def prepare(self) -> Prepared:
        """Return what all references come down to, in the host's memory."""
        for examples in (e for e in self.examples if e.references):
            for reference in examples.references:
                if examples in self._canvases:
                    self._cut(examples.concept.name, reference)
                else:
                    list(self._encoded(examples.concept.name, [reference]))
        return Prepared({key: tokens.cpu() for key, tokens in self._tokens.items()}, self._crops)

    def take(self, prepared: Prepared) -> None:
        """Take over what another guide has prepared, and read no reference image."""
        self._crops |= {key: list(crops) for key, crops in prepared.crops.items()}
        device = self.detector.device
        self._tokens |= {key: tokens.to(device) for key, tokens in prepared.tokens.items()}

    def question(self, frame: Frame) -> Question:
        """Return what a photo is given. Raises InputError where its partial labels, or objects, do not fit it."""
        boxes = {e.concept.name: b for e in self.examples if e.photos and (b := e.boxes_on(frame)) is not None}
        digest = pixel_digest(frame.pixels) if frame.size_hw in self._reference_sizes else ""
        references = {e.concept.name: r for e in self.examples if e.references and (r := e.references_for(digest))}
        return Question(boxes, references, tuple(shown_on(frame, self.objects)))

    def labels_fit(self, frame: Frame) -> bool:
        """Return whether a photo's labels, if it is given any, fit it: else `question` refuses it."""
        try:
            list(shown_on(frame, self.objects))
            for examples in self.examples:
                if examples.photos:
                    examples.boxes_on(frame)
        except InputError:
            return False
        return True

    def in_tracking(self, item: MediaItem) -> Callable[[Frame], Mapping[str, Exemplar | None]]:
        """Return what the frames of a tracked video give its prompts, as for `Tracker.track`.

        A class with boxes on any frame is asked by its exemplar prompts throughout, with the boxes where they are:
        so an object keeps its identity. Asking raises InputError where the boxes do not fit the frame.
        """
        guided = [examples for examples in self.examples if examples.has_boxes_in(item)]
        question = Question({e.concept.name: _SOMEWHERE for e in guided}, {})
        left = [prompt.key for prompt in self.prompts if not self._asked_on_photo(prompt, question)]

        def ask(frame: Frame) -> dict[str, Exemplar | None]:
            given: dict[str, Exemplar | None] = dict.fromkeys(left)
            for examples in guided:
                boxes = examples.boxes_on(frame)
                own = [prompt.key for prompt in self.prompts if prompt.class_name == examples.concept.name]
                given |= dict.fromkeys(own, boxes) if boxes is not None else {}
            return given

        return ask

    def detect(
        self,
        frames: Sequence[Frame],
        floor: float,
        questions: Sequence[Question] | None = None,
        only: Collection[str] | None = None,
    ) -> list[Detection]:
        """Return one Detection per frame, as `Detector.detect` does; presence is NaN where a prompt is not asked.

        `only` has the keys of the prompts to ask, where that is not all of them.
        Of a prompt put to several canvases the presence is the highest, and it is that of the canvas, references
        included. Raises InputError where a photo's partial labels, or objects, do not fit it.
        """
        questions = questions or [self.question(frame) for frame in frames]
        given = [[one for one in q.given if only is None or one.prompt in only] for q in questions]
        keep_grids = self.clicker is not None and (any(given) or any(c.refine for c in self.concepts.concepts))
        whole = self._tiler.detect(frames, self._in_whole(frames, floor, questions, only, keep_grids), floor)
        if self.clicker is None or not keep_grids:
            return whole
        sharper = refined(self.clicker, self.concepts, frames, whole)
        found = masked(self.clicker, frames, given, [one.grid for one in whole])
        return [self._with_given(*pair) for pair in zip(sharper, found, strict=True)]

    def _in_whole(
        self,
        frames: Sequence[Frame],
        floor: float,
        questions: Sequence[Question],
        only: Collection[str] | None,
        keep_grids: bool,
    ) -> list[Detection]:
        """Return what photos come to without tiles, canvases included."""
        asked = self._chosen(only)
        if not self.examples:
            plain = self.detector.detect(frames, asked, floor, keep_grids=keep_grids)
            return [replace(one, presence=self.spread(asked, one.presence)) for one in plain]
        views = [[one] for one in self._on_photos(frames, questions, floor, asked, keep_grids)]
        for examples in (e for e in self._canvases if only is None or self._keys_of(e) & set(only)):
            for index, found in self._on_canvases(examples, frames, questions, floor):
                views[index].append(found)
        return list(map(self._joined, views))

    def _with_given(self, seen: Detection, given: Sequence[Candidate]) -> Detection:
        """Return what was seen, without what the image encoder said, and the objects that are given: presence 1."""
        if not given:
            return replace(seen, grid=None)
        presence = seen.presence.copy()
        presence[[self._position[one.prompt] for one in given]] = 1.0
        found = sorted((*seen.candidates, *given), key=lambda one: self._position[one.prompt])
        return replace(seen, presence=presence, candidates=tuple(found), grid=None)

    def _chosen(self, only: Collection[str] | None) -> list[Prompt]:
        return [p for p in self.prompts if p.source != "given" and (only is None or p.key in only)]

    def _keys_of(self, examples: Examples) -> set[str]:
        return {prompt.key for prompt in self.prompts if prompt.class_name == examples.concept.name}

    def encodes(self, n_images: int) -> dict[str, int]:
        """Return how many pictures a run over so many photos encodes, by what they are."""
        if not n_images:
            return {}
        plain = any(self.asks_photos(prompt.key) for prompt in self.prompts)
        shown = len({name for examples in self.objects for name in examples.photos})
        counts = {"photos": n_images if plain else min(shown, n_images)}
        tokens = [e for e in self.examples if e.references and e not in self._canvases]
        counts |= {f"references of {e.concept.name}": sum(r.boxes is not None for r in e.references) for e in tokens}
        counts |= {f"canvases for {e.concept.name}": n_images * pictures(e) for e in self._canvases}
        return counts

    def asks_photos(self, key: str) -> bool:
        """Return whether a prompt is put to some photos themselves, and not to canvases alone."""
        photo = Question({}, {e.concept.name: e.references for e in self.examples if e.references})
        return any(e.photos for e in self.examples) or self._asked_on_photo(self.prompts[self._position[key]], photo)

    # ---- on the photo

    def _on_photos(
        self,
        frames: Sequence[Frame],
        questions: Sequence[Question],
        floor: float,
        chosen_prompts: Sequence[Prompt],
        keep_grids: bool,
    ) -> list[Detection]:
        from sam3label.model.detector import Detection

        nothing = np.full(len(self.prompts), np.nan, np.float32)
        detections = [Detection(nothing, ()) for _ in frames]
        asked = [[p for p in chosen_prompts if self._asked_on_photo(p, q)] for q in questions]
        chosen = [i for i, prompts in enumerate(asked) if prompts] or list(range(len(frames) if keep_grids else 0))
        given = [self._exemplars(questions[i], asked[i]) for i in chosen]
        if chosen:
            prompts = self.prompts if any(asked) else ()
            found = self.detector.detect([frames[i] for i in chosen], prompts, floor, given, keep_grids)
            for i, detection in zip(chosen, found, strict=True):
                detections[i] = detection if prompts else replace(detection, presence=nothing)
        return detections

    def _asked_on_photo(self, prompt: Prompt, question: Question) -> bool:
        if prompt.class_name is not None:
            on_canvas = any(e.concept.name == prompt.class_name for e in self._canvases)
            return question.guides(prompt.class_name) and not on_canvas
        return any(name is None or not question.guides(name) for name in self.wanted.askers[prompt.key])

    def _exemplars(self, question: Question, asked: Sequence[Prompt]) -> Mapping[str, Exemplar | None]:
        from sam3label.model.ask import ReferenceTokens

        left = self._position.keys() - {prompt.key for prompt in asked}
        given: dict[str, Exemplar | None] = dict.fromkeys(left)
        for prompt in asked:
            name = prompt.class_name
            if name is None:
                continue
            if name in question.boxes:
                given[prompt.key] = question.boxes[name]
            else:
                given[prompt.key] = ReferenceTokens(tuple(self._encoded(name, question.references[name])))
        return given

    def _encoded(self, class_name: str, references: Sequence[Reference]) -> Iterator[Tensor]:
        for reference in references:
            if reference.boxes is None:
                continue
            key = class_name, reference.digest
            if key not in self._tokens:
                self._tokens[key] = self.detector.encode_references([reference.frame()], [reference.boxes])[0]
            yield self._tokens[key]

    # ---- on canvases

    def _on_canvases(
        self,
        examples: Examples,
        frames: Sequence[Frame],
        questions: Sequence[Question],
        floor: float,
    ) -> Iterator[tuple[int, Detection]]:
        """Yield (frame number, what was found on its target) for every picture of a class that has references."""
        assert examples.concept.exemplars is not None
        name, rules = examples.concept.name, examples.concept.exemplars
        prompts = [prompt for prompt in self.prompts if prompt.class_name == name]
        jobs = [
            (index, number, window)
            for index, frame in enumerate(frames)
            if name in questions[index].references
            for number, window in enumerate(canvas.windows(frame.size_hw, rules.tiles))
        ]
        for start in range(0, len(jobs), self.detector.image_batch):
            some = jobs[start : start + self.detector.image_batch]
            made = [self._picture(examples, frames[i], questions[i], window) for i, _, window in some]
            pictures = [replace(frames[i], pixels=m.pixels) for (i, _, _), m in zip(some, made, strict=True)]
            given = [{prompt.key: m.boxes for prompt in prompts} for m in made]
            found = self.detector.detect(pictures, prompts, floor, given)
            for (i, number, window), picture, detection in zip(some, made, found, strict=True):
                mapped = _mapped(detection.candidates, picture.strip, window, number, frames[i].size_hw)
                presence = self.spread(prompts, detection.presence)
                full = detection.full if number or rules.tiles == 1 else ()  # the closest views say
                yield i, replace(detection, presence=presence, candidates=(*mapped,), full=full)

    def _picture(self, examples: Examples, frame: Frame, question: Question, view: Window) -> canvas.Canvas:
        assert examples.concept.exemplars is not None
        name, share = examples.concept.name, examples.concept.exemplars.share
        target = frame.pixels[view.y : view.y + view.height, view.x : view.x + view.width]
        cut = [self._cut(name, reference) for reference in question.references[name]]
        return canvas.compose(target, canvas.choose(cut), share)

    def _cut(self, class_name: str, reference: Reference) -> list[canvas.Crop]:
        key = class_name, reference.digest
        if key not in self._crops:
            self._crops[key] = crops(reference)
        return self._crops[key]

    def spread(self, prompts: Sequence[Prompt], presence: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return presence [..., N] of some prompts as [..., P] of all; NaN for the others."""
        spread = np.full((*presence.shape[:-1], len(self.prompts)), np.nan, np.float32)
        spread[..., [self._position[prompt.key] for prompt in prompts]] = presence
        return spread

    def _joined(self, views: Sequence[Detection]) -> Detection:
        """Return what a photo and its canvases come to."""
        found = once(*(view.candidates for view in views))
        candidates = sorted(found, key=lambda candidate: self._position[candidate.prompt])
        presence = np.fmax.reduce([view.presence for view in views])
        full = tuple(dict.fromkeys(key for view in views for key in view.full))
        return replace(views[0], presence=presence, candidates=tuple(candidates), full=full)


def guides_of(examples: Sequence[Examples]) -> dict[str, str]:
    """Return, by class, a digest of everything about its examples that changes the numbers."""
    return {e.concept.name: _described(e) for e in examples}


def crops(reference: Reference) -> list[canvas.Crop]:
    """Return what a canvas may show of a reference."""
    if reference.boxes is None:
        return []
    pixels, boxes = reference.frame().pixels, reference.boxes
    pairs = zip(boxes.boxes_xyxy, boxes.positive, strict=True)
    return canvas.largest([canvas.cut(pixels, box, positive) for box, positive in pairs])


def _described(examples: Examples) -> str:
    return _way(examples) + (REFINED if examples.concept.refine else "")


def _way(examples: Examples) -> str:
    if examples.gives_objects:
        return f"objects {examples.digest}"
    if not examples.references:
        return f"partial labels {examples.digest}"
    rules = examples.concept.exemplars
    assert rules is not None
    how = f"canvas, share {rules.share:g}, tiles {rules.tiles}" if rules.mode == "canvas" else "tokens"
    return f"{how}, {len(examples.references)} references {examples.digest}"


def _mode(examples: Examples) -> str:
    return examples.concept.exemplars.mode if examples.concept.exemplars else ""


def pictures(examples: Examples) -> int:
    """Return canvases per photo: the whole, and the tiles."""
    tiles = examples.concept.exemplars.tiles if examples.concept.exemplars else 1
    return 1 if tiles == 1 else 1 + tiles * tiles


def _mapped(
    candidates: Sequence[Candidate], strip: int, window: Window, number: int, size_hw: tuple[int, int]
) -> Iterator[Candidate]:
    """Yield candidates of a canvas as candidates of the photo. Those of tiles get ids of their own."""
    for candidate in candidates:
        part = canvas.on_target(candidate.rle, strip)
        rle = None if part is None else in_image(part, window, size_hw)
        if rle is None:
            continue
        own = candidate_id(candidate.item_id, candidate.frame, candidate.id, number) if number else candidate.id
        yield replace(candidate, id=own, rle=rle, area=masks.area(rle), box_xywh=masks.box_xywh(rle))
