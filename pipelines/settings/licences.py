"""The licences of a set's parts (models, captions, images), and whether they allow commercial use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence asks of whoever uses or passes on what it covers, in short, and its text where SPDX has none."""

    asks: str
    commercial: bool
    url: str | None = None


_META = (
    "pass the weights and what is made of them on with a copy of it, name them in publications, and use them for "
    "nothing military or nuclear, no espionage and no weapons"
)
# By how the identifiers begin, in lower case and with hyphens; the first one counts.
_TERMS = {
    "cc-by-nc": Terms("name the authors and the licence, say what was changed; no commercial use", False),
    "cc-by-nd": Terms("name the authors and the licence; pass on nothing that was changed", False),
    "cc-by-sa": Terms(
        "name the authors and the licence, say what was changed, and pass changes on under the same licence", True
    ),
    "cc-by": Terms("name the authors and the licence, and say what was changed", True),
    "agpl": Terms("give the source of what is built on it, even if it is only served, under the same licence", False),
    "sam-license": Terms(_META, True, "https://github.com/facebookresearch/sam3/blob/main/LICENSE"),
    "dinov3-license": Terms(_META, True, "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"),
}


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
    refused = not_commercial(parts)
    if refused:
        raise InputError(
            f"--licence-policy commercial refuses {'; '.join(refused)}. Make the set with others, state what is "
            "unknown in the settings (`licences`, or a model's `licence`) and mine again, or export for research alone"
        )


def not_commercial(parts: Iterable[tuple[str, str, str]]) -> list[str]:
    """The parts that are not known to allow commercial use, each with the reason; `parts` as in the function above."""
    return [f"{what} {name}: {why}" for what, name, licence in parts if (why := _not_commercial(licence))]


def _not_commercial(licence: str) -> str | None:
    if "-NC" in licence.upper():
        return f"{licence} is not for commercial use"
    terms = terms_of(licence)
    if licence.startswith(_COMMERCIAL) or (terms and terms.commercial):
        return None
    if terms:
        return f"{licence} asks to {terms.asks}"
    return "licence unknown" if licence == UNKNOWN else f"{licence} is not known to allow commercial use"


def terms_of(licence: str) -> Terms | None:
    """What a licence asks, where that is more than its own text and the names in it; None where it is not known."""
    named = licence.lower().replace(" ", "-")
    return next((terms for begin, terms in _TERMS.items() if named.startswith(begin)), None)


def url_of(licence: str) -> str:
    """Where the text of a licence is."""
    terms = terms_of(licence)
    return terms.url if terms and terms.url else f"https://spdx.org/licenses/{licence}"


def strictest(licences: Sequence[str]) -> str:
    """One word for a set made of parts: their licence where all have the same, else `other`."""
    return licences[0] if len(set(licences)) == 1 and licences[0] != UNKNOWN else "other"
