"""What all nouns of a run have in common, as the footer of its levels holds it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maskmine.mining.scores.statistics import Array

_SCALE_KEY = "maskmine.levels"  # of the metadata


@dataclass(frozen=True, slots=True)
class LevelScale:
    """What all nouns have in common: `images` that the levels were measured on, the mean `spread` of nouns, the mean
    `agreement` of a region with its noun's prototype, and the `centre_D` of all regions."""

    images: int
    spread: float
    agreement: float
    centre_D: Array

    def metadata(self) -> dict[str, str]:
        """As text for the footer of the table."""
        centre = base64.b64encode(self.centre_D.astype("<f4").tobytes()).decode()
        values = {"images": self.images, "spread": self.spread, "agreement": self.agreement, "centre": centre}
        return {_SCALE_KEY: json.dumps(values, sort_keys=True)}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> LevelScale:
        """From the footer of the table."""
        values = json.loads(metadata[_SCALE_KEY])
        centre_D = np.frombuffer(base64.b64decode(values["centre"]), "<f4").astype(np.float64)
        return cls(values["images"], values["spread"], values["agreement"], centre_D)
