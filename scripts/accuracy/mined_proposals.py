"""The recall of the proposals that a run was mined with, taken from its cells: the model does not run again.

Shapes: N regions of an image; H, W height and width of its picture in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.rows import RegionsRow
from maskmine.scripts.accuracy.proposals import ProposalRecall, measure_proposals
from maskmine.scripts.demo_world.on_disk import read_scenes

MOST_PROPOSALS = 30


def mined_recall(run: RunFolder, *, world: Path) -> ProposalRecall:
    """Which objects of a mined world have a region that fits them, with at most MOST_PROPOSALS a scene."""
    rows = regions_by_image(run)
    image_ids, scenes = zip(*read_scenes(world), strict=True)
    replayed = _replay([rows[image_id] for image_id in image_ids])
    return measure_proposals(replayed, scenes, most=MOST_PROPOSALS)


def regions_by_image(run: RunFolder) -> dict[str, RegionsRow]:
    """The regions of all images of a run, by image id."""
    return {row.image_id: row for row in FinishedRun.open(run).all_rows(RegionsRow)}


def _replay(rows: Sequence[RegionsRow]) -> Proposer:
    """A proposer that gives what was mined, image after image in the order of the rows."""
    import torch

    waiting = iter(rows)

    def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals]:
        for image in images:
            regions = next(waiting).regions
            masks_NHW = np.zeros((len(regions), *image.rgb_3HW.shape[1:]), np.bool_)
            for number, region in enumerate(regions):
                masks_NHW[number] = region.mask.to_array()
            scores_N = torch.tensor([region.score for region in regions], dtype=torch.float32)
            yield Proposals(torch.from_numpy(masks_NHW), scores_N, tuple(region.label for region in regions))

    return propose
