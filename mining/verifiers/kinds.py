"""All kinds of verifiers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maskmine.mining.verifiers.mm_grounding_dino import MMGroundingDino
from maskmine.mining.verifiers.open_maskformer import OpenMaskFormerVerifier
from maskmine.mining.verifiers.owlv2 import Owlv2
from maskmine.mining.verifiers.sam3 import Sam3
from maskmine.mining.verifiers.second_clip import SecondClip

AnyVerifier = Annotated[
    Sam3 | Owlv2 | MMGroundingDino | SecondClip | OpenMaskFormerVerifier, Field(discriminator="kind")
]
"""Whatever can check a pair."""
