"""The stages of a run, each with the seconds of a core that it takes: of threads here, and of processes that decode."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import psutil

from maskmine.mining import region_stages, shards
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.models import embeddings
from maskmine.mining.models.clip import ImageTower, RegionClip
from maskmine.mining.proposers.proposals import LoadedImage, Proposer
from maskmine.pipelines.settings.mining import Mining
from maskmine.pipelines.steps.jobs import LevelsJob, MakeCell, NounsJob, PairsJob, VocabularyJob
from maskmine.pipelines.steps.regions_jobs import ProposalsJob
from maskmine.pipelines.steps.shards_job import SelectionJob, ShardsJob

DECODE, PROPOSE, CUT, EMBED = "decode", "propose", "cut crops", "embed"
MASKS, CELLS, NOUNS, VOCABULARY, PAIRS = "encode masks", "cells of regions", "nouns", "vocabulary", "pairs"
WRITE_DECODE, WRITE_CROP, WRITE_IMAGE = "shards: decode", "shards: crop", "shards: encode"
WRITE_MASK, WRITE_TAR, ELSE = "shards: encode masks", "shards: tar, index", "all else"
OF_REGIONS = (DECODE, PROPOSE, CUT, EMBED, MASKS, CELLS)
OF_SHARDS = (WRITE_DECODE, WRITE_CROP, WRITE_IMAGE, WRITE_MASK, WRITE_TAR)
STAGES = (*OF_REGIONS, NOUNS, VOCABULARY, PAIRS, *OF_SHARDS, ELSE)
ON_DEVICE = (PROPOSE, CUT, EMBED, VOCABULARY)
"""What a GPU does where there is one; of the vocabulary, nearly all is text that CLIP embeds."""
_JOBS: dict[Any, str] = {
    NounsJob: NOUNS,
    VocabularyJob: VOCABULARY,
    LevelsJob: PAIRS,
    PairsJob: PAIRS,
    SelectionJob: PAIRS,
    ProposalsJob: CELLS,
    ShardsJob: WRITE_TAR,
}
"""Each step of a run, by the stage that has what is in no other."""


@dataclass
class Stopwatch:
    """Adds up the CPU seconds of stages. A stage within another counts for itself alone; `making_s` are those of the
    whole process while cells are made, without planning and loading models."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    making_s: float = 0.0
    _step: str = ""
    _within: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose CPU seconds count for the stage."""

        def run(*values: Any, **named: Any) -> Any:
            stack: list[float] = self._within.__dict__.setdefault("stack", [])
            stack.append(0.0)
            start_s = time.thread_time()
            try:
                return work(*values, **named)
            finally:
                spent_s = time.thread_time() - start_s
                self._add(stage, spent_s - stack.pop())
                if stack:
                    stack[-1] += spent_s

        return run

    @contextmanager
    def watching(self, settings: Mining) -> Iterator[None]:
        """Every stage of a run in this process is timed in the block; its models have one thread each."""
        with ExitStack() as stack:
            for where, name, stage in (
                (region_stages, "keep_proposals", PROPOSE),
                (embeddings, "cut_regions", CUT),
                (region_stages, "run_lengths", MASKS),
                (shards, "cut_samples", WRITE_CROP),
                (shards, "encode_image", WRITE_IMAGE),
                (shards, "encode_mask", WRITE_MASK),
            ):
                stack.enter_context(mock.patch.object(where, name, self.timed(stage, getattr(where, name))))
            for name in ("read", "size"):
                stack.enter_context(mock.patch.object(Decoding, name, self._decoding(getattr(Decoding, name))))
            proposer = type(settings.regions.proposals)
            stack.enter_context(mock.patch.object(proposer, "open", self._proposing(proposer.open)))
            stack.enter_context(mock.patch.object(RegionClip, "open_image", self._embedding(RegionClip.open_image)))
            for job, stage in _JOBS.items():
                stack.enter_context(mock.patch.object(job, "open", self._opening(job.open, stage)))
            children_s = _children_s()
            yield
            decoded_s = sum(self.seconds[stage] for stage in (DECODE, WRITE_DECODE))
            of_children_s = _children_s() - children_s
        self.seconds[ELSE] = self.making_s - sum(self.seconds.values())
        # Processes decode for both passes over the pictures; each has its share, as the answers were read here.
        for stage in (DECODE, WRITE_DECODE):
            self.seconds[stage] += of_children_s * self.seconds[stage] / decoded_s if decoded_s else 0.0

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] += seconds

    def _decoding(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """In the shards it is another stage than before the proposals."""
        of_regions, of_shards = self.timed(DECODE, read), self.timed(WRITE_DECODE, read)
        return lambda *values, **named: (of_shards if self._step == WRITE_TAR else of_regions)(*values, **named)

    def _proposing(self, opens: Callable[..., Proposer]) -> Callable[..., Proposer]:
        def open_timed(*values: Any, **named: Any) -> Proposer:
            propose = opens(*values, **named)

            def proposed(images: list[LoadedImage], *, min_score: float) -> Any:
                return iter(list(propose(images, min_score=min_score)))  # some work as they are asked

            timed: Proposer = self.timed(PROPOSE, proposed)
            return timed

        return open_timed

    def _embedding(self, opens: Callable[..., ImageTower]) -> Callable[..., ImageTower]:
        def open_timed(*values: Any, **named: Any) -> ImageTower:
            tower = opens(*values, **named)
            return replace(tower, embed=self.timed(EMBED, tower.embed))

        return open_timed

    def _opening(self, opens: Callable[..., MakeCell], stage: str) -> Callable[..., MakeCell]:
        def open_timed(job: Any) -> MakeCell:
            make = self.timed(stage, opens(job))

            def made(*values: Any) -> Any:
                self._step, start_s = stage, _own_s()
                report = make(*values)
                self.making_s += _own_s() - start_s
                return report

            return made

        return open_timed


def _own_s() -> float:
    """CPU seconds of this process."""
    times = os.times()
    return times.user + times.system


def _children_s() -> float:
    """CPU seconds of the processes that decode, which live on."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return float(sum(one.user + one.system for one in times))
