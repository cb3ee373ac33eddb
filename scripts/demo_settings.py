"""The settings of the demo world: where things are at home, what the place looks like, and how people say it.

No word that names a place here is a noun of the table: places are never annotated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

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

    `horizon` is the range of the height where `far` (wall, sky) meets `near` (floor, ground), as shares of the picture;
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


_DAY_SKY = (
    Surface((104, 164, 224), (206, 228, 242), "cloud", 0.16),
    Surface((150, 178, 205), (226, 230, 232), "cloud", 0.14),
    Surface((78, 128, 200), (250, 214, 176), "cloud", 0.12),
)
_GRASS = (
    Surface((132, 170, 82), (84, 132, 48), "grass", 0.16),
    Surface((168, 178, 96), (118, 136, 58), "grass", 0.15),
    Surface((96, 150, 92), (52, 104, 58), "grass", 0.15),
)
_SAND = (
    Surface((232, 212, 168), (206, 176, 124), "sand", 0.10),
    Surface((222, 190, 140), (190, 146, 96), "sand", 0.11),
)
_WALL = (
    Surface((222, 214, 200), (204, 192, 174), "plaster", 0.06),
    Surface((172, 190, 198), (150, 170, 180), "plaster", 0.06),
    Surface((202, 178, 170), (186, 158, 148), "stripes", 0.04),
    Surface((160, 178, 150), (140, 160, 132), "plaster", 0.06),
)
_TILED = (
    Surface((214, 226, 230), (196, 210, 216), "tiles", 0.10),
    Surface((226, 220, 206), (208, 200, 184), "tiles", 0.09),
    Surface((160, 196, 200), (140, 178, 184), "tiles", 0.09),
)
_WOOD = (
    Surface((196, 150, 100), (164, 116, 70), "wood", 0.13),
    Surface((146, 104, 70), (116, 78, 50), "wood", 0.11),
    Surface((222, 196, 158), (200, 168, 126), "wood", 0.10),
)
_FLOOR = (
    Surface((176, 134, 94), (146, 104, 68), "planks", 0.14),
    Surface((150, 142, 134), (120, 112, 106), "carpet", 0.10),
    Surface((150, 96, 88), (124, 74, 70), "carpet", 0.10),
    Surface((206, 200, 190), (178, 170, 160), "tiles", 0.09),
)
_ASPHALT = (
    Surface((134, 134, 138), (98, 98, 104), "sand", 0.10),
    Surface((150, 144, 136), (116, 110, 104), "stone", 0.09),
)
_SEA = (
    Surface((96, 152, 180), (38, 96, 138), "water", 0.14),
    Surface((110, 160, 160), (40, 104, 112), "water", 0.14),
)
_CLOTH = (
    Surface((196, 188, 200), (168, 160, 176), "cloth", 0.08),
    Surface((152, 170, 196), (124, 142, 170), "cloth", 0.08),
    Surface((206, 186, 160), (182, 160, 132), "cloth", 0.09),
    Surface((168, 196, 176), (140, 168, 148), "check", 0.08),
    Surface((214, 170, 164), (190, 144, 138), "check", 0.08),
)

SETTINGS = (
    Setting(
        "meadow",
        ("animal", "bird", "bug", "flower", "plant", "tree", "person", "camp", "aircraft", "sky"),
        ("in the grass", "on the grass", "in a green field", "in a meadow", "on a lawn"),
        _DAY_SKY,
        _GRASS,
        (0.28, 0.45),
        "contact",
        ("hills", "tufts"),
    ),
    Setting(
        "forest",
        ("wild", "bird", "bug", "flower", "plant", "tree", "fantasy", "camp"),
        ("in a forest", "in the woods", "on the forest floor"),
        (
            Surface((96, 130, 92), (66, 96, 60), "leaves", 0.20),
            Surface((140, 148, 96), (92, 96, 58), "leaves", 0.20),
        ),
        (
            Surface((116, 110, 66), (88, 76, 46), "grass", 0.17),
            Surface((102, 124, 70), (66, 88, 44), "stone", 0.14),
        ),
        (0.32, 0.5),
        "contact",
        ("trunks", "tufts"),
    ),
    Setting(
        "savanna",
        ("wild", "plant", "bird", "sky", "aircraft"),
        ("in the desert", "on the dry ground", "on the savanna", "in the dust"),
        (
            Surface((128, 176, 216), (240, 224, 190), "cloud", 0.10),
            Surface((210, 140, 96), (250, 214, 150), "cloud", 0.12),
        ),
        (Surface((214, 184, 120), (180, 140, 82), "grass", 0.12), *_SAND),
        (0.3, 0.48),
        "contact",
        ("hills", "pebbles"),
    ),
    Setting(
        "sea",
        ("boat", "sea", "bird", "aircraft", "sky"),
        ("on the water", "in the sea", "on the ocean", "at sea"),
        _DAY_SKY,
        _SEA,
        (0.28, 0.42),
        "none",
        ("foam",),
    ),
    Setting(
        "underwater",
        ("sea",),
        ("under the water", "in the water", "in clear water", "in the deep ocean"),
        (),
        (
            Surface((92, 178, 202), (20, 72, 120), "water", 0.12),
            Surface((110, 190, 180), (24, 90, 96), "cloud", 0.16),
            Surface((60, 120, 176), (18, 44, 92), "cloud", 0.14),
        ),
        None,
        "none",
        ("bokeh", "foam"),
    ),
    Setting(
        "beach",
        ("sea", "athlete", "person", "drink", "camp", "sport"),
        ("on the beach", "on the sand", "by the ocean", "in the sand"),
        (
            Surface((132, 190, 226), (92, 160, 190), "water", 0.10),
            Surface((170, 200, 214), (110, 166, 176), "water", 0.10),
        ),
        _SAND,
        (0.26, 0.42),
        "contact",
        ("pebbles",),
    ),
    Setting(
        "sky",
        ("aircraft", "bird", "sky"),
        ("in the sky", "in the air", "against a blue sky", "high in the sky"),
        (),
        (
            Surface((84, 148, 218), (190, 218, 240), "cloud", 0.24),
            Surface((98, 136, 190), (244, 206, 180), "cloud", 0.22),
            Surface((140, 160, 184), (206, 214, 220), "cloud", 0.20),
        ),
        None,
        "none",
        ("bokeh",),
    ),
    Setting(
        "space",
        ("space", "fantasy", "sky"),
        ("in space", "in the night sky", "in the dark"),
        (),
        (
            Surface((22, 26, 60), (58, 40, 92), "cloud", 0.16),
            Surface((14, 34, 62), (30, 76, 104), "cloud", 0.14),
            Surface((48, 26, 52), (96, 52, 74), "cloud", 0.15),
        ),
        None,
        "none",
        ("specks", "bokeh"),
    ),
    Setting(
        "street",
        ("vehicle", "street", "person", "athlete"),
        ("on the road", "on the street", "in the street", "on a city street"),
        (*_DAY_SKY, Surface((186, 178, 170), (160, 150, 140), "bricks", 0.10)),
        _ASPHALT,
        (0.32, 0.48),
        "contact",
        ("skyline", "lane"),
    ),
    Setting(
        "city",
        ("building", "tree", "vehicle", "sky", "street"),
        ("in a city", "in the city", "in a park", "on a square"),
        _DAY_SKY,
        (*_GRASS, *_ASPHALT),
        (0.34, 0.5),
        "contact",
        ("skyline",),
    ),
    Setting(
        "snow",
        ("winter", "wild", "animal", "person", "athlete", "building"),
        ("in the snow", "on the snow", "on a snowy day", "on the ice"),
        (
            Surface((150, 180, 210), (222, 230, 238), "cloud", 0.12),
            Surface((128, 140, 168), (214, 208, 220), "cloud", 0.12),
        ),
        (
            Surface((226, 234, 242), (198, 212, 228), "snow", 0.06),
            Surface((214, 222, 236), (176, 192, 216), "snow", 0.07),
        ),
        (0.28, 0.45),
        "contact",
        ("hills", "specks"),
    ),
    Setting(
        "kitchen",
        ("fruit", "vegetable", "food", "sweet", "drink", "kitchen"),
        ("on a table", "on the table", "on a wooden table", "on the kitchen counter", "in a kitchen"),
        (*_WALL, *_TILED),
        _WOOD,
        (0.2, 0.42),
        "contact",
        ("panels",),
    ),
    Setting(
        "tabletop",
        ("fruit", "vegetable", "food", "sweet", "drink", "kitchen", "plant"),
        ("on a table", "on a wooden surface", "on the table", "on a cutting board"),
        (),
        _WOOD,
        None,
        "drop",
        ("crumbs",),
    ),
    Setting(
        "picnic",
        ("fruit", "food", "sweet", "drink", "toy", "flower", "bag"),
        ("on a picnic blanket", "on a blanket", "on a checkered blanket"),
        (),
        (Surface((206, 96, 90), (178, 72, 70), "check", 0.16), Surface((110, 150, 196), (84, 120, 170), "check", 0.15)),
        None,
        "drop",
        ("crumbs",),
    ),
    Setting(
        "desk",
        ("office", "device", "bag", "drink", "medical"),
        ("on a desk", "on the desk", "in an office", "on a tidy desk"),
        _WALL,
        (*_WOOD, Surface((206, 206, 204), (180, 180, 180), "plaster", 0.05)),
        (0.2, 0.42),
        "contact",
        ("panels",),
    ),
    Setting(
        "desktop",
        ("office", "device", "tool", "bag"),
        ("on a desk", "on the desk", "on a flat surface"),
        (),
        (
            *_WOOD,
            Surface((206, 206, 204), (180, 180, 180), "plaster", 0.05),
            Surface((92, 98, 106), (70, 76, 84), "cloth", 0.06),
        ),
        None,
        "drop",
        ("crumbs",),
    ),
    Setting(
        "room",
        ("home", "toy", "music", "device", "clothes", "person"),
        ("in a room", "on the floor", "in a living room", "on the carpet", "in the bedroom"),
        _WALL,
        _FLOOR,
        (0.4, 0.6),
        "contact",
        ("panels",),
    ),
    Setting(
        "bathroom",
        ("bath", "body", "clothes"),
        ("in a bathroom", "on the bathroom floor", "on the tiles", "in the bathroom"),
        _TILED,
        (
            _TILED[0],
            Surface((120, 132, 140), (96, 108, 116), "tiles", 0.10),
            Surface((200, 196, 188), (176, 172, 164), "tiles", 0.09),
        ),
        (0.4, 0.6),
        "contact",
        ("panels",),
    ),
    Setting(
        "workshop",
        ("tool", "device"),
        ("on a workbench", "in a workshop", "in a garage", "on the workbench"),
        (
            Surface((150, 140, 128), (124, 114, 104), "planks", 0.10),
            Surface((134, 142, 148), (108, 116, 122), "bricks", 0.10),
        ),
        (_WOOD[0], _WOOD[1], Surface((138, 138, 136), (108, 108, 106), "stone", 0.10)),
        (0.2, 0.42),
        "contact",
        ("panels",),
    ),
    Setting(
        "stage",
        ("music", "person", "fantasy", "athlete"),
        ("on a stage", "on the stage", "in the spotlight", "in a theater"),
        (
            Surface((126, 40, 48), (92, 28, 40), "curtain", 0.14),
            Surface((62, 56, 104), (40, 36, 76), "curtain", 0.14),
            Surface((40, 90, 92), (28, 64, 70), "curtain", 0.13),
        ),
        _FLOOR[:1],
        (0.5, 0.66),
        "contact",
        ("bokeh",),
    ),
    Setting(
        "gym",
        ("sport", "athlete"),
        ("on a court", "in a gym", "on the gym floor", "on a playing field"),
        (*_WALL, *_DAY_SKY[:1]),
        (
            _FLOOR[0],
            Surface((92, 150, 90), (64, 120, 64), "stripes", 0.06),
            Surface((176, 106, 84), (146, 80, 62), "sand", 0.07),
        ),
        (0.3, 0.48),
        "contact",
        ("lane", "panels"),
    ),
    Setting(
        "clinic",
        ("medical", "body", "person"),
        ("in a clinic", "on a tray", "on a white sheet", "in a laboratory"),
        (
            Surface((206, 222, 224), (186, 206, 210), "plaster", 0.04),
            Surface((198, 212, 200), (180, 196, 184), "tiles", 0.06),
        ),
        (
            Surface((226, 230, 232), (200, 206, 210), "cloth", 0.05),
            Surface((186, 204, 208), (158, 178, 184), "plaster", 0.05),
        ),
        (0.25, 0.45),
        "contact",
        ("panels",),
    ),
    Setting(
        "hall",
        ("fantasy", "home", "music"),
        ("in a dark hall", "on the stone floor", "in a cave", "in an old cellar"),
        (Surface((112, 106, 112), (84, 78, 86), "bricks", 0.14), Surface((96, 104, 100), (66, 74, 72), "stone", 0.16)),
        (Surface((132, 124, 120), (96, 90, 88), "tiles", 0.12), Surface((118, 112, 104), (84, 78, 72), "stone", 0.14)),
        (0.4, 0.58),
        "contact",
        ("bokeh",),
    ),
    Setting(
        "cloth",
        ("clothes", "bag", "toy", "body", "sport", "medical", "tool"),
        ("on a piece of cloth", "on a sheet", "against a plain background", "on soft fabric"),
        (),
        _CLOTH,
        None,
        "drop",
        ("bokeh",),
    ),
)

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
"""Kinds that people carry about: now and then one of them is in a place where it is not at home."""

ALOFT = ("sky", "aircraft", "bird")
"""Kinds that hang above the horizon (birds may also stand on the ground)."""

ALOFT_PLACES = ("in the sky", "in the air")


@functools.cache
def settings_for(kind: str) -> tuple[Setting, ...]:
    """The settings where a kind is at home; every kind of the table has one."""
    return tuple(setting for setting in SETTINGS if kind in setting.kinds)
