"""The licences of a set's parts (models, captions, images), and whether they allow commercial use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings

UNKNOWN = "unknown"
LicencePolicy = Literal["any", "commercial"]

# SPDX identifiers that allow commercial use and changes; `-only`, `-or-later` and versions follow the name.
_COMMERCIAL = (
    *("0BSD", "Apache-", "BSD-", "BSL-1.0", "CDLA-Permissive-", "ISC", "MIT", "PDDL-", "Unlicense", "Zlib"),
    *("CC0-", "CC-PDDC", "CC-BY-1", "CC-BY-2", "CC-BY-3", "CC-BY-4", "CC-BY-SA-", "ODC-By-", "ODbL-", "OFL-"),
)


class Licences(Settings):
    """The licences of what the user brings: SPDX identifiers where there is one."""

    captions: str | dict[str, str] = UNKNOWN
    """Licence of the captions: one for all, or one for each caption source by its `name`."""
    pictures: str = UNKNOWN
    """Licence of the images."""

    def of_captions(self, source: str) -> str:
        """The licence of the captions of a source."""
        return self.captions if isinstance(self.captions, str) else self.captions.get(source, UNKNOWN)


def refuse_other_licences(parts: Iterable[tuple[str, str, str]], *, policy: LicencePolicy) -> None:
    """Raise InputError when a part's licence is not one that the policy allows; all such parts are named.

    `parts` are `(what it is, its name, licence)`.
    """
    if policy == "any":
        return
    refused = [f"{what} {name}: {why}" for what, name, licence in parts if (why := _not_commercial(licence))]
    if refused:
        raise InputError(
            f"--licence-policy commercial refuses {'; '.join(refused)}. Make the set with others, state what is "
            "unknown in the settings (`licences`, or a model's `licence`) and mine again, or export for research alone"
        )


def _not_commercial(licence: str) -> str | None:
    if "-NC" in licence.upper():
        return f"{licence} is not for commercial use"
    if licence.startswith(_COMMERCIAL):
        return None
    return "licence unknown" if licence == UNKNOWN else f"{licence} is not known to allow commercial use"


def strictest(licences: Sequence[str]) -> str:
    """One word for a set made of parts: their licence where all have the same, else `other`."""
    return licences[0] if len(set(licences)) == 1 and licences[0] != UNKNOWN else "other"
