"""A stratified random sample of the pairs that a run's rule made, for people or a truth file to judge.

All pairs of the cells of `pairs` can be drawn, whether a filter left them out of the shards or not. Strata are bins of
the pairs' score times two groups of nouns by how many images mention them; each gets a share of the sample that is
proportional to its pairs (proportional allocation: W. G. Cochran, "Sampling Techniques", 3rd edition, 1977, § 5.5).
DuckDB reads the cells in bounded memory; the order of a stratum is that of the SHA-256 of seed, image and number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import PurePath
from typing import Any

from maskmine.mining.storage.query import query_cells
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, Pair, PairsRow, RegionsRow, SampleRow
from maskmine.schemas.sample import sample_key
from maskmine.schemas.wording import counted

SCORE_BINS = 5
_LEAST_PER_STRATUM = 2  # one pair says nothing of the variance within a stratum
_SCORE_DIGITS = 4  # to which scores are rounded before they are counted, which bounds the counters
_VALUES = ("similarity", "lift", "evidence", "confidence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairToJudge:
    """A pair of the sample. `key` is that of its sample in the shards, if it is `written` there.

    `index` is the row of the image in the cells of its part, `number` that of the pair in its image, `region` that of
    its region; `mask` is `Mask.digest` of that. `caption` is the text that says the noun.
    """

    key: str
    image_id: str
    part: int
    index: int
    number: int
    noun: str
    caption: str
    region: int
    mask: str
    written: bool
    similarity: float | None
    lift: float | None
    evidence: float | None
    confidence: float | None
    stratum: str


@dataclass(frozen=True, slots=True)
class StratumSize:
    """How many pairs of the run belong to a stratum, and how many of these are in the shards."""

    pairs: int
    written: int


@dataclass(frozen=True, slots=True)
class PairSample:
    """The sample in its random order, and the sizes of all strata by name."""

    pairs: tuple[PairToJudge, ...]
    strata: Mapping[str, StratumSize]


@dataclass(frozen=True, slots=True)
class _Drawn:
    part: int
    index: int
    number: int
    written: bool
    stratum: str
    place: tuple[float, str]


def draw_pairs(finished: FinishedRun, *, size: int, seed: int) -> list[PairToJudge]:
    """`size` pairs of a run, or all where there are fewer, in random order: the same for the same seed.

    Any prefix is a random sample of each stratum, and its shares of the strata are those of the whole as nearly as
    can be. Raises IncompleteError when cells are missing.
    """
    return list(draw_sample(finished, size=size, seed=seed).pairs)


def draw_sample(finished: FinishedRun, *, size: int, seed: int) -> PairSample:
    """`draw_pairs` with the sizes of the strata."""
    for path in (*finished.paths(PairsRow), *finished.paths(SampleRow)):
        if not finished.folder.exists(*path.split("/")[-2:]):
            raise IncompleteError(f"{path}: missing; run `maskmine mine` again")
    strata, drawn = _draw(finished, size=size, seed=seed)
    pairs: list[tuple[tuple[float, str], PairToJudge]] = []
    for part, of_part in groupby(sorted(drawn, key=attrgetter("part")), key=attrgetter("part")):
        chosen = list(of_part)
        pairs += zip([one.place for one in chosen], _read_pairs(finished, part, chosen), strict=True)
    ordered = sorted(pairs, key=lambda item: item[0])[:size]
    return PairSample(tuple(pair for _, pair in ordered), strata)


def _draw(finished: FinishedRun, *, size: int, seed: int) -> tuple[dict[str, StratumSize], list[_Drawn]]:
    """The sizes of the strata, and the drawn pairs of each."""
    nouns = finished.vocabulary_paths
    cells = [*finished.paths(PairsRow), *nouns, *finished.paths(SampleRow)]
    with query_cells(cells) as (connection, local):
        pairs, rest = local[: len(finished.parts)], local[len(finished.parts) :]
        vocabulary, shards = rest[: len(nouns)], rest[len(nouns) :]
        query = _Query(connection, {"pairs": pairs, "vocabulary": vocabulary, "shards": shards})
        query.choose_score()
        query.find_bins()
        names, sizes = query.sizes()
        shares = _allocate({key: entry.pairs for key, entry in sizes.items()}, size=size)
        drawn = list(query.drawn(shares, names, seed=seed))
    return {names[key]: entry for key, entry in sizes.items()}, drawn


def _allocate(sizes: Mapping[Any, int], *, size: int) -> dict[Any, int]:
    """How many of each stratum: in proportion to its pairs by largest remainders, but at least two where it has two."""
    total = sum(sizes.values())
    size = min(size, total)
    exact = {key: size * count / total for key, count in sizes.items()}
    shares = {key: min(max(int(exact[key]), min(_LEAST_PER_STRATUM, count)), count) for key, count in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (shares[key] - exact[key], key))
    while (missing := size - sum(shares.values())) > 0:
        for key in [key for key in by_remainder if shares[key] < sizes[key]][:missing]:
            shares[key] += 1
    return shares


# Every pair with its place, its score, and how many images mention its noun.
_SCORED = """
    WITH numbered AS (
        SELECT filename, file_row_number AS index, image_id, unnest(pairs) AS pair,
            generate_subscripts(pairs, 1) - 1 AS number
        FROM read_parquet($pairs, filename = true, file_row_number = true)
    ), scored AS (
        SELECT numbered.filename, index, image_id, number, round(pair.{score}, {digits}) AS score,
            coalesce(images, 0) AS images
        FROM numbered LEFT JOIN (
            SELECT noun, sum(images)::BIGINT AS images FROM read_parquet($vocabulary) GROUP BY noun
        ) AS said ON said.noun = pair.noun
    )
"""
# Every pair with its stratum and whether it is in the shards.
_STRATIFIED = (
    _SCORED
    + """, written AS (
        SELECT image_id, regexp_extract(key, '-([0-9]+)$', 1)::BIGINT AS number FROM read_parquet($shards)
    ), stratified AS (
        SELECT scored.*, written.number IS NOT NULL AS written, images > $median AS is_frequent,
            CASE WHEN score IS NOT NULL THEN len(list_filter($edges::DOUBLE[], lambda edge: edge < score)) ELSE -1 END
                AS bin
        FROM scored LEFT JOIN written ON written.image_id = scored.image_id AND written.number = scored.number
    )
"""
)


class _Query:
    """The queries of a sample over one set of cells, and what the earlier ones found for the later ones."""

    def __init__(self, connection: Any, sources: Mapping[str, Any]) -> None:
        self.connection, self.sources, self.score = connection, sources, "similarity"
        self.edges: list[float] = []
        self.median = 0

    def _rows(self, text: str, **values: Any) -> list[Any]:
        text = text.format(score=self.score, digits=_SCORE_DIGITS)
        values = {**self.sources, "edges": self.edges, "median": self.median, **values}
        used = {name: value for name, value in values.items() if f"${name}" in text}
        rows: list[Any] = self.connection.execute(text, used).fetchall()
        return rows

    def choose_score(self) -> None:
        """Evidence where some pair has it, which the cells of earlier format versions do not know."""
        (kind,) = self._rows("SELECT ANY_VALUE(typeof(pairs)) FROM read_parquet($pairs)")[0]
        if '"evidence"' in kind or "evidence " in kind:
            self.score = "evidence"
            if not self._rows(_SCORED + "SELECT count(score) FROM scored")[0][0]:
                self.score = "similarity"

    def find_bins(self) -> None:
        """The edges of the score's quantile bins, and the median pair's number of images that mention its noun."""
        counted = "SELECT {0}, count(*) FROM scored WHERE {0} IS NOT NULL GROUP BY {0} ORDER BY {0}"
        scores = self._rows(_SCORED + counted.format("score"))
        images = self._rows(_SCORED + counted.format("images"))
        wanted = [number / SCORE_BINS for number in range(1, SCORE_BINS)]
        self.edges = sorted(set(_quantiles(scores, wanted)) - {score for score, _ in scores[-1:]})
        self.median = int(next(iter(_quantiles(images, [0.5])), 0))

    def sizes(self) -> tuple[dict[tuple[int, bool], str], dict[tuple[int, bool], StratumSize]]:
        """The names and sizes of the strata, by bin and frequency."""
        rows = self._rows(
            _STRATIFIED
            + """SELECT bin, is_frequent, count(*), count(*) FILTER (WHERE written), min(score), max(score)
            FROM stratified GROUP BY ALL ORDER BY ALL"""
        )
        names = {(row[0], row[1]): self._name(*row[:2]) for row in rows}
        return names, {(row[0], row[1]): StratumSize(row[2], row[3]) for row in rows}

    def _name(self, score_bin: int, is_frequent: bool) -> str:
        nouns = f"noun in {'>' if is_frequent else '≤'} {counted(self.median, 'image')}"
        if score_bin < 0:
            return f"no {self.score}, {nouns}"
        ends = [f"{edge:.{_SCORE_DIGITS}g}" for edge in self.edges]
        above = f"{ends[score_bin - 1]} < " if score_bin else ""
        to = f" ≤ {ends[score_bin]}" if score_bin < len(ends) else ""
        return f"{above}{self.score}{to}, {nouns}"

    def drawn(
        self, shares: Mapping[tuple[int, bool], int], names: Mapping[tuple[int, bool], str], *, seed: int
    ) -> Iterator[_Drawn]:
        """The pairs of the lowest hashes of each stratum, with the places at which the sample has them."""
        most = max(shares.values(), default=0)
        if not most:
            return
        rows = self._rows(
            _STRATIFIED
            + f""", hashed AS (
                SELECT bin, is_frequent, filename, index, number, written,
                    sha256($seed || ' ' || image_id || ' ' || number) AS hash
                FROM stratified
            )
            SELECT bin, is_frequent, min_by(struct_pack(filename, index, number, written, hash), hash, {most})
            FROM hashed GROUP BY ALL ORDER BY ALL""",
            seed=str(seed),
        )
        for score_bin, is_frequent, found in rows:
            key = (score_bin, is_frequent)
            for rank, one in enumerate(found[: shares[key]]):
                yield _Drawn(
                    part=int(PurePath(one["filename"]).stem),
                    index=one["index"],
                    number=one["number"],
                    written=one["written"],
                    stratum=names[key],
                    place=((rank + 0.5) / shares[key], one["hash"]),
                )


def _quantiles(counted: Sequence[tuple[float, int]], shares: Sequence[float]) -> Iterator[float]:
    """The lowest values up to which at least these shares (ascending) of the counted ones lie."""
    total, below, wanted = sum(count for _, count in counted), 0, list(shares)
    for value, count in counted:
        below += count
        while wanted and below >= wanted[0] * total:
            yield value
            wanted.pop(0)


def _read_pairs(finished: FinishedRun, part: int, drawn: Sequence[_Drawn]) -> Iterator[PairToJudge]:
    """The drawn pairs of a part as their cells have them, each cell read once."""
    rows = finished.columns(part, PairsRow, ["image_id", "pairs"])
    captions = finished.columns(part, CaptionsRow, ["captions"])["captions"]
    masks = finished.columns(part, RegionsRow, ["regions.list.element.mask"])["regions"]
    for one in drawn:
        image_id, pair = rows["image_id"][one.index].as_py(), Pair(**rows["pairs"][one.index][one.number].as_py())
        yield PairToJudge(
            key=sample_key(image_id, one.number),
            image_id=image_id,
            part=part,
            index=one.index,
            number=one.number,
            noun=pair.noun,
            caption=captions[one.index][pair.caption].as_py(),
            region=pair.region,
            mask=Mask(**masks[one.index][pair.region]["mask"].as_py()).digest,
            written=one.written,
            stratum=one.stratum,
            **{name: getattr(pair, name) for name in _VALUES},
        )
