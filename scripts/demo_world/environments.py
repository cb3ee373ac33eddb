"""The settings of the demo world: where things belong, what the place looks like, and how people say it.

They are in `data/demo_environments.yaml`, where no word that names a place is a noun of the table: places are never
annotated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import yaml

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


@dataclass(frozen=True, slots=True)
class Surface:
    """A backdrop part: two colours, first to last row, and a texture of `strength` times 255 around them."""

    first: Colour
    last: Colour
    texture: str
    strength: float


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of place.

    `horizon` is the range of the height where `far` (wall, sky) meets `near` (floor, ground), as shares of the image;
    None for a surface seen from above, or for air and water, where objects lie or float anywhere on `near`.
    `shadow` says how things meet the ground: `contact` (standing on it), `drop` (lying on it) or `none` (floating).
    """

    name: str
    kinds: tuple[str, ...]
    places: tuple[str, ...]
    far: tuple[Surface, ...]
    near: tuple[Surface, ...]
    horizon: tuple[float, float] | None
    shadow: str
    decor: tuple[str, ...]


PORTABLE = (
    "fruit",
    "vegetable",
    "food",
    "sweet",
    "toy",
    "tool",
    "office",
    "clothes",
    "bag",
    "music",
    "sport",
    "device",
    "kitchen",
)
"""Kinds that people carry about: now and then one of them is in a place where it does not belong."""

ALOFT = ("sky", "aircraft", "bird")
"""Kinds that hang above the horizon (birds may also stand on the ground)."""

ALOFT_PLACES = ("in the sky", "in the air")


@functools.cache
def all_settings() -> tuple[Setting, ...]:
    """All settings, in the order of the file."""
    text = resources.files("maskmine.scripts").joinpath("data/demo_environments.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    surfaces = {
        name: Surface(tuple(first), tuple(last), texture, strength)
        for name, (first, last, texture, strength) in tree["surfaces"].items()
    }
    return tuple(
        Setting(
            name=row["name"],
            kinds=tuple(row["kinds"]),
            places=tuple(row["places"]),
            far=tuple(surfaces[name] for name in row["far"]),
            near=tuple(surfaces[name] for name in row["near"]),
            horizon=row["horizon"] and tuple(row["horizon"]),
            shadow=row["shadow"],
            decor=tuple(row["decor"]),
        )
        for row in tree["settings"]
    )


@functools.cache
def settings_for(kind: str) -> tuple[Setting, ...]:
    """The settings where a kind is at home; every kind of the table has one."""
    return tuple(setting for setting in all_settings() if kind in setting.kinds)
