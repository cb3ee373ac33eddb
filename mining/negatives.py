"""Negatives: for each image the nouns nearest to what it says that it does not show. A matrix product; no model.

A noun is a negative of an image when

- it can be seen at all: its separability (`mining/levels.py`) and the number of images that say it are high enough;
- the image does not say it, in any form: no noun of its captions may name the same thing (`mining/text/relations.py`),
  nor the label of a region, and no caption has its words;
- it is not what a noun that is said looks like: the prototypes of the two point in different directions;
- no region of the image is as similar to it as images that do not say it have on average: its own level.

Of these the nearest to the nouns that are said come first, by the cosine of their text embeddings.

Shapes: S said nouns of a part, C candidates, B of them in a block, M nearest candidates of a said noun, P candidates of
an image, R its regions, A its said nouns, D width of the embedding.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from maskmine.mining.models.embeddings import unpack
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.scores.statistics import Array, unit
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.mining.text.labels import label_names
from maskmine.mining.text.relations import (
    Relations,
    read_synonym_groups,
    read_wordnet,
    synonym_groups_identity,
    wordnet_identity,
)
from maskmine.schemas.rows import CaptionsRow, NegativesRow, NounsRow, RegionsRow
from maskmine.schemas.settings import AnyPath, Settings

FindNegatives = Callable[[Iterable["ImageToSearch"], pa.Array], Iterator[NegativesRow]]
"""Images of a part, and the nouns that it says, to their negatives, in order."""

_NEAREST_AT_LEAST, _NEAREST_FOR_EACH = 128, 32  # candidates that are tried for a said noun; more for more negatives
_SAID_AT_ONCE, _CANDIDATES_AT_ONCE = 1024, 4096  # of similarities in memory: 32 MB
_TRIED_AT_ONCE = 64  # candidates of an image; most often the first ones are enough
_MILLION = 1_000_000
_INDEX_BITS = 32  # of the number of a candidate, below its similarity in a key
_WORD = re.compile(r"\w+")


class Negatives(Settings):
    """Which nouns an image surely does not show, and how many of them its samples name."""

    per_image: Annotated[int, Field(ge=1, le=100)] = 5
    """Negatives of an image at most, those nearest to what it says."""
    min_images: Annotated[int, Field(ge=1)] = 3
    """Images whose captions must say a noun before it can be a negative: it leaves out slips of the pen."""
    min_separability: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Lowest separability of a negative, and of a noun that is said and that negatives are near to: what CLIP cannot
    see it cannot miss."""
    margin: Annotated[float, Field(ge=0)] = 0.25
    """How far below its level a negative's best similarity in the image is at least, in spreads of the noun."""
    max_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """Highest cosine of the prototypes of a negative and of a noun that is said. Nouns that are found on regions that
    look alike may name the same thing."""
    synonyms: AnyPath | None = None
    """Your own list of nouns that may name the same thing: a group a line, with commas between its words. Such nouns
    are no negatives of each other, nor are kinds and their general words, where you put both in a line."""
    wordnet: AnyPath | None = None
    """Folder of a WordNet database, such as /usr/share/wordnet of Debian's `wordnet-base`: its synonyms, and nouns of
    which one is a kind of the other, are no negatives of each other. Nothing is fetched."""

    def contents(self) -> dict[str, Any]:
        """Synonyms and WordNet by what is in them. Raises InputError when they cannot be read."""
        return {
            "synonyms": None if self.synonyms is None else synonym_groups_identity(self.synonyms),
            "wordnet": None if self.wordnet is None else wordnet_identity(self.wordnet),
        }

    def open(self, tables: NounTables, *, among: NounTables | None = None) -> FindNegatives:
        """A function from the images of a part to their negatives, which are nouns of `among`, where it is not those of
        the images themselves. Raises InputError when a list cannot be read."""
        relations = Relations(
            read_synonym_groups(self.synonyms) if self.synonyms is not None else {},
            read_wordnet(self.wordnet) if self.wordnet is not None else None,
        )
        return _Search(self, relations, tables, Candidates.of(among or tables, self)).find


@dataclass(frozen=True, slots=True)
class ImageToSearch:
    """What is said of an image, and its regions; an image that a step rejected has none."""

    nouns: NounsRow
    captions: CaptionsRow
    regions: RegionsRow


@dataclass(frozen=True)
class Candidates:
    """Nouns that may be negatives, [C], in the order of the vocabulary.

    `text_CD` are their text embeddings as float16, `prototype_CD` their prototypes as float32, all 0 where there is
    none; both lie in files without a name. A noun is absent where no similarity reaches its `bound`.
    """

    nouns: pa.ChunkedArray
    lemmas: pa.ChunkedArray
    bound_C: Array
    text_CD: Any
    prototype_CD: Any

    @classmethod
    def of(cls, tables: NounTables, settings: Negatives) -> Candidates:
        """Of a vocabulary and its levels: those that can be seen, and that enough images say."""
        spread, dim = tables.scorer.scale.spread, len(tables.scorer.scale.centre_D)
        names: list[pa.Table] = []
        with _scratch() as texts, _scratch() as prototypes:
            for vocabulary, levels in zip(_batches(tables.vocabulary), _batches(tables.levels), strict=True):
                may_be = _may_be_negative(vocabulary, levels, settings)
                rows, of_rows = vocabulary.filter(may_be), levels.filter(may_be)
                margins = pc.multiply(settings.margin, pc.fill_null(of_rows["spread"], spread))
                columns = [rows["noun"], pc.coalesce(_filled(rows["lemma"]), rows["noun"])]
                names.append(pa.table([*columns, pc.subtract(of_rows["level"], margins)], ["noun", "lemma", "bound"]))
                texts.writelines(rows["embedding"].to_pylist())
                prototypes.writelines(one or bytes(4 * dim) for one in of_rows["prototype"].to_pylist())
            found = pa.concat_tables(names).combine_chunks()
            text_CD, prototype_CD = (
                _mapped(file, dtype, (len(found), dim)) for file, dtype in ((texts, "<f2"), (prototypes, "<f4"))
            )
        return cls(found["noun"], found["lemma"], found["bound"].to_numpy(), text_CD, prototype_CD)

    def name(self, number: int) -> tuple[str, str]:
        """A candidate's noun and lemma."""
        return self.nouns[number].as_py(), self.lemmas[number].as_py()

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The unit vectors of the candidates, a block at a time, each with the number of its first one."""
        for first in range(0, len(self.nouns), _CANDIDATES_AT_ONCE):
            yield first, unit(self.text_CD[first : first + _CANDIDATES_AT_ONCE].astype(np.float64))

    def vectors(self, numbers_P: Any) -> tuple[Array, Array]:
        """The unit vectors of some candidates, [P, D], and those of their prototypes, 0 where there is none."""
        texts_PD, prototypes_PD = (
            unit(vectors_CD[numbers_P].astype(np.float64)) for vectors_CD in (self.text_CD, self.prototype_CD)
        )
        return texts_PD, prototypes_PD


@dataclass(frozen=True)
class _Search:
    settings: Negatives
    relations: Relations
    tables: NounTables
    candidates: Candidates

    def find(self, images: Iterable[ImageToSearch], nouns: pa.Array) -> Iterator[NegativesRow]:
        """The negatives of images whose captions say these nouns."""
        embeddings, scorer = self.tables.of_nouns(nouns)
        least = self.settings.min_separability
        anchors = sorted(noun for noun, scores in scorer.nouns.items() if scores.separability >= least)
        near = self._nearest({noun: embeddings[noun] for noun in anchors})
        prototypes = {noun: scores.prototype_D for noun, scores in scorer.nouns.items()}
        for image in images:
            yield NegativesRow(image.nouns.image_id, self._of_image(image, near, prototypes))

    def _nearest(self, said: Mapping[str, bytes]) -> dict[str, Array]:
        """The nearest candidates of each noun that is said, [M, 2]: similarity in millionths and number."""
        names, found = list(said), dict[str, Array]()
        for start in range(0, len(names), _SAID_AT_ONCE):
            block = names[start : start + _SAID_AT_ONCE]
            text_SD = unit(unpack([said[name] for name in block]).astype(np.float64))
            keys_SM = self._nearest_keys(text_SD)
            numbers_SM = (1 << _INDEX_BITS) - 1 - (keys_SM & ((1 << _INDEX_BITS) - 1))
            millionths_SM = keys_SM >> _INDEX_BITS
            found |= {
                name: np.stack([near_M, numbers_M], axis=1)
                for name, near_M, numbers_M in zip(block, millionths_SM, numbers_SM, strict=True)
            }
        return found

    def _nearest_keys(self, text_SD: Array) -> Any:
        """The M greatest keys of each text: its similarity to a candidate, and the candidate's number, low ones first.

        No two keys are equal, so the same are found whatever the blocks.
        """
        most = max(_NEAREST_AT_LEAST, _NEAREST_FOR_EACH * self.settings.per_image)
        best_SM = np.empty((len(text_SD), 0), np.int64)
        for first, candidate_BD in self.candidates.blocks():
            millionths_SB = np.rint(text_SD @ candidate_BD.T * _MILLION).astype(np.int64)
            numbers_B = (1 << _INDEX_BITS) - 1 - np.arange(first, first + len(candidate_BD))
            keys_SB = np.concatenate([best_SM, (millionths_SB << _INDEX_BITS) | numbers_B], axis=1)
            if keys_SB.shape[1] > most:
                keys_SB = np.partition(keys_SB, keys_SB.shape[1] - most, axis=1)[:, -most:]
            best_SM = keys_SB
        return best_SM

    def _of_image(
        self, image: ImageToSearch, near: Mapping[str, Array], prototypes: Mapping[str, Array | None]
    ) -> tuple[str, ...]:
        said = {noun.text: noun for noun in image.nouns.nouns}
        named = {(noun.text, noun.lemma) for noun in said.values()}
        labels = {region.label for region in image.regions.regions if region.label}
        named |= {(name, name) for label in labels for name in label_names(label)}
        spoken = [_WORD.findall(caption.lower()) for caption in image.captions.captions]
        chosen: dict[str, str] = {}  # by lemma: one form of a noun
        anchors = [near[noun] for noun in said if noun in near]
        for number in self._unseen(image.regions, anchors, [prototypes.get(noun) for noun in said]):
            noun, lemma = self.candidates.name(number)
            if lemma in chosen or self._may_be_said(noun, lemma, named, spoken):
                continue
            chosen[lemma] = noun
            if len(chosen) == self.settings.per_image:
                break
        return tuple(chosen.values())

    def _unseen(self, regions: RegionsRow, anchors: Sequence[Array], said: Sequence[Array | None]) -> Iterator[int]:
        """The candidates near to `anchors`, nearest first, that no region is similar to and that do not look like what
        is `said`, by prototypes."""
        packed = [region.embedding for region in regions.regions if region.embedding is not None]
        if not anchors or not packed:
            return
        numbers_N = _by_nearness(np.concatenate(anchors))
        region_RD = unit(unpack(packed).astype(np.float64))
        for start in range(0, len(numbers_N), _TRIED_AT_ONCE):
            numbers_P = numbers_N[start : start + _TRIED_AT_ONCE]
            text_PD, own = self.candidates.vectors(numbers_P)
            best_P = np.round(text_PD @ region_RD.T, 6).max(axis=1)
            absent_P = best_P < self.candidates.bound_C[numbers_P]
            unlike_P = _agreement(own, said) <= self.settings.max_agreement
            yield from numbers_P[absent_P & unlike_P].tolist()

    def _may_be_said(
        self, noun: str, lemma: str, named: Iterable[tuple[str, str]], spoken: Sequence[Sequence[str]]
    ) -> bool:
        """Whether a noun may name the same as a noun (text, lemma) of an image, or a caption has its words."""
        if any(self.relations.related(noun, lemma, *other) for other in named):
            return True
        return any(_has_words(words, form) for words in spoken for form in {noun, lemma})


def _by_nearness(near_P2: Array) -> Any:
    """The numbers of candidates, each once, the nearest to any noun that is said first; equal ones by number."""
    millionths_P, numbers_P = near_P2.T
    order_P = np.lexsort((numbers_P, -millionths_P))
    _, first = np.unique(numbers_P[order_P], return_index=True)
    return numbers_P[order_P][np.sort(first)]


def _agreement(own_PD: Array, said: Sequence[Array | None]) -> Array:
    """The highest cosine of each candidate's prototype with that of a noun that is said, [P]; −1 where one has none."""
    known = [prototype_D for prototype_D in said if prototype_D is not None]
    if not known:
        return np.full(len(own_PD), -1.0)
    best_P = np.round(own_PD @ unit(np.stack(known)).T, 6).max(axis=1)
    return np.where(own_PD.any(axis=1), best_P, -1.0)


def _has_words(words: Sequence[str], noun: str) -> bool:
    """Whether a caption's words have those of a noun, one after the other."""
    wanted = _WORD.findall(noun.lower())
    size = len(wanted)
    return any(words[start : start + size] == wanted for start in range(len(words) - size + 1))


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    """Some rows at a time, at the same places of every table of as many rows; of an empty one no row, once."""
    for start in range(0, max(1, len(table)), _CANDIDATES_AT_ONCE):
        yield table.slice(start, _CANDIDATES_AT_ONCE)


def _may_be_negative(vocabulary: pa.Table, levels: pa.Table, settings: Negatives) -> pa.ChunkedArray:
    """Which nouns have a level, can be seen, and are said by enough images; null for those without separability."""
    is_known = pc.and_(pc.is_valid(levels["level"]), pc.is_valid(vocabulary["embedding"]))
    is_said = pc.greater_equal(vocabulary["images"], settings.min_images)
    return pc.and_(pc.and_(is_known, is_said), pc.greater_equal(levels["separability"], settings.min_separability))


def _filled(lemmas: pa.ChunkedArray) -> pa.ChunkedArray:
    """The lemmas that are not empty, others null."""
    return pc.if_else(pc.equal(lemmas, ""), None, lemmas)


def _scratch() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix=owned_prefix(SCRATCH))


def _mapped(file: IO[bytes], dtype: str, shape: tuple[int, int]) -> Any:
    """What was written to a file as an array of that shape, whose pages belong to the system.

    Raises ValueError when it was not of that size.
    """
    file.flush()
    if file.tell() != np.dtype(dtype).itemsize * shape[0] * shape[1]:
        raise ValueError(f"{file.tell()} bytes are no {shape} of {dtype}")
    return np.memmap(file, dtype, "r", shape=shape) if all(shape) else np.empty(shape, dtype)
