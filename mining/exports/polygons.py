"""A mask as one closed polygon that gives the mask back, pixel for pixel, to whoever cuts its points to whole pixels.

Ultralytics has one polygon for an instance: it cuts the coordinates down to whole pixels and fills the polygon by the
even-odd rule, edges included (`cv2.fillPoly`). So the outline along the borders of the pixels is drawn a little inside
the mask: cut to whole pixels it runs along the mask's outermost pixels, and as it stands it encloses the mask.

Several outlines are joined by bridges, walked there and back, so that they enclose nothing; but the pixels under a
bridge are filled. To a hole it lies on the mask itself. Parts that touch at a corner are joined across it. Parts that
are apart can only be joined over the background: these pixels are counted, and are as few as joining all parts takes.

Shapes: H, W height and width; E corners of all outlines; P pixels; points are x, y in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np

Point = tuple[float, float]
Ints = np.ndarray[Any, np.dtype[np.int64]]

INSET_PX = 0.02
"""How far inside the mask the outline lies: more than coordinates of six digits are off by, at 16,383 pixels."""
_SLANT_PX = 0.37  # where in its pixel a slanting bridge begins: not in the middle, where a reader may add a point


@dataclass(frozen=True, slots=True)
class Outline:
    """The points of a closed polygon, [N, 2], and how many pixels outside of the mask its bridges cover."""

    points_N2: np.ndarray[Any, np.dtype[np.float64]]
    bridge_px: int


def outline_of(mask_HW: np.ndarray[Any, Any]) -> Outline:
    """The polygon of a mask of shape [H, W] that has a pixel at least; its points lie inside of the mask's pixels."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    corners = _corners(np.pad(mask_HW[top : rows[-1] + 1, left : columns[-1] + 1] != 0, 1))
    bridges = [*corners.to_holes(), *corners.between_parts()]
    points = np.array(list(_walk(corners, bridges)))
    points += np.array([left - 1, top - 1])  # where the box lies, without the padding
    covered = {pixel for bridge in bridges for pixel in bridge.over}
    bridge_px = sum(not corners.mask_HW[y, x] for x, y in covered)
    return Outline(points, bridge_px)


@dataclass(frozen=True, slots=True)
class _Bridge:
    """A way from a place on one outline to a place on another: `over` are its pixels in order, all but slanting runs
    in rows or columns. A place is a vertical edge, by its number, and a row."""

    start: tuple[int, int]
    end: tuple[int, int]
    over: tuple[tuple[int, int], ...]

    @property
    def back(self) -> _Bridge:
        return _Bridge(self.end, self.start, self.over[::-1])


@dataclass(frozen=True)
class _Corners:
    """The corners of all outlines of a mask with a border of background.

    Corner number e lies at the grid point `x_E`, `y_E` (the upper left corner of that pixel), and belongs to the pixel
    `pixel_x_E`, `pixel_y_E` of the mask. `across_E` is the corner at the other end of its horizontal edge, `along_E`
    at that of its vertical one. Vertical edges are numbered from left to right, in each column from above: those of
    edge n are `by_column_E[2 * n]` and the next, and `edge_E` is that of a corner.
    """

    mask_HW: np.ndarray[Any, np.dtype[np.bool_]]
    x_E: Ints
    y_E: Ints
    pixel_x_E: Ints
    pixel_y_E: Ints
    across_E: Ints
    along_E: Ints
    by_column_E: Ints
    edge_E: Ints

    def point(self, corner: int) -> Point:
        """Where a corner is drawn: a little inside of its pixel."""
        dx = INSET_PX if self.pixel_x_E[corner] == self.x_E[corner] else -INSET_PX
        dy = INSET_PX if self.pixel_y_E[corner] == self.y_E[corner] else -INSET_PX
        return float(self.x_E[corner] + dx), float(self.y_E[corner] + dy)

    @cached_property
    def _starts(self) -> Ints:
        """Where the vertical edges begin, as one number each, in their order."""
        upper = self.by_column_E[::2]
        return self.x_E[upper] * len(self.mask_HW) + self.y_E[upper]

    def edge_at(self, x: int, y: int) -> int:
        """The number of the vertical edge at grid column x beside row y."""
        return int(np.searchsorted(self._starts, x * len(self.mask_HW) + y, side="right")) - 1

    def to_holes(self) -> Iterator[_Bridge]:
        """A bridge to each hole from the outline that lies left of it: then all lead to the outline of the part."""
        upper = self.by_column_E[::2]
        _, leftmost = np.unique(_numbered(self.across_E, self.along_E)[upper], return_index=True)
        for edge in leftmost.tolist():
            x, y = int(self.pixel_x_E[upper[edge]]), int(self.y_E[upper[edge]])
            if x < self.x_E[upper[edge]]:  # the mask lies left of it
                left = self._left_end(x, y)
                over = tuple((column, y) for column in range(left, x + 1))
                yield _Bridge((self.edge_at(left, y), y), (edge, y), over)

    def between_parts(self) -> Iterator[_Bridge]:
        """Bridges that join all parts and cover as little background as that takes."""
        for (x0, y0), (x1, y1) in _nearest(self.mask_HW):
            left0, left1 = self._left_end(x0, y0), self._left_end(x1, y1)
            over = [(x, y0) for x in range(left0, x0)]
            over += _straight((x0, y0), (x1, y1))
            over += [(x, y1) for x in range(x1 - 1, left1 - 1, -1)]
            yield _Bridge((self.edge_at(left0, y0), y0), (self.edge_at(left1, y1), y1), tuple(over))

    def _left_end(self, x: int, y: int) -> int:
        """The first pixel of a pixel's run in its row."""
        return int(np.flatnonzero(~self.mask_HW[y, :x])[-1]) + 1


def _corners(mask_HW: np.ndarray[Any, np.dtype[np.bool_]]) -> _Corners:
    """Find the corners, and link each with the next one in its row and its column.

    A corner has one horizontal and one vertical edge; where two pixels of the mask touch at a corner alone, there are
    two, one for each pixel.
    """
    upper_left, upper_right = mask_HW[:-1, :-1], mask_HW[:-1, 1:]
    lower_left, lower_right = mask_HW[1:, :-1], mask_HW[1:, 1:]
    around = upper_left * 1 + upper_right * 2 + lower_left * 4 + lower_right * 8
    ys, xs, sides = [], [], []
    for side, patterns in enumerate(_PATTERNS):  # the pixel: 0 upper left, 1 upper right, 2 lower left, 3 lower right
        found_y, found_x = np.nonzero(np.isin(around, patterns))
        ys.append(found_y + 1)
        xs.append(found_x + 1)
        sides.append(np.full(len(found_y), side))
    y_E, x_E, side_E = np.concatenate(ys), np.concatenate(xs), np.concatenate(sides)
    is_right_E, is_lower_E = side_E % 2 == 1, side_E >= 2
    single_E = np.isin(around[y_E - 1, x_E - 1], (1, 2, 4, 8, 6, 9))
    # The edges of a corner lie at its pixel where that stands alone, and away from it where three pixels meet.
    goes_right_E, goes_down_E = is_right_E == single_E, is_lower_E == single_E
    by_row, by_column = np.lexsort((goes_right_E, x_E, y_E)), np.lexsort((goes_down_E, y_E, x_E))
    edge_E = np.empty(len(x_E), np.int64)
    edge_E[by_column] = np.arange(len(x_E)) // 2
    return _Corners(
        mask_HW=mask_HW,
        x_E=x_E,
        y_E=y_E,
        pixel_x_E=x_E - ~is_right_E,
        pixel_y_E=y_E - ~is_lower_E,
        across_E=_partners(by_row),
        along_E=_partners(by_column),
        by_column_E=by_column,
        edge_E=edge_E,
    )


# What lies around a grid point, as a sum of 1 upper left, 2 upper right, 4 lower left, 8 lower right, where the pixel
# of each side has a corner: it alone, all but the one opposite of it, or it and the one opposite.
_PATTERNS = ((1, 7, 9), (2, 11, 6), (4, 13, 6), (8, 14, 9))


def _partners(order_E: Ints) -> Ints:
    """Two by two in an order."""
    partners_E = np.empty_like(order_E)
    partners_E[order_E[::2]], partners_E[order_E[1::2]] = order_E[1::2], order_E[::2]
    return partners_E


def _numbered(across_E: Ints, along_E: Ints) -> Ints:
    """The number of the outline of each corner."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    corners = np.arange(len(across_E))
    ends = np.concatenate([across_E, along_E])
    links = coo_array((np.ones(len(ends), bool), (np.concatenate([corners, corners]), ends)), shape=(len(corners),) * 2)
    numbers_E: Ints = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers_E


def _nearest(mask_HW: np.ndarray[Any, np.dtype[np.bool_]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of pixels (x, y) of different parts that join all parts with as little as possible between them."""
    from scipy.ndimage import label
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    part_HW, parts = label(mask_HW)
    if parts < 2:
        return
    pixels_P4, part_P2 = _meetings(part_HW)
    apart_P = abs(pixels_P4[:, 2:] - pixels_P4[:, :2]).max(axis=1)
    order = np.lexsort((*pixels_P4.T, apart_P, part_P2[:, 1], part_P2[:, 0]))
    pixels_P4, part_P2, apart_P = pixels_P4[order], part_P2[order], apart_P[order]
    _, best = np.unique(part_P2, axis=0, return_index=True)  # the shortest of each two parts
    links = coo_array((apart_P[best], part_P2[best].T), shape=(parts + 1, parts + 1))
    tree = minimum_spanning_tree(links.tocsr()).tocoo()
    place = dict(zip(map(tuple, part_P2[best].tolist()), pixels_P4[best].tolist(), strict=True))
    for pair in sorted(zip(tree.row.tolist(), tree.col.tolist(), strict=True)):
        x0, y0, x1, y1 = place[pair]
        yield (x0, y0), (x1, y1)


def _meetings(part_HW: np.ndarray[Any, np.dtype[np.int32]]) -> tuple[Ints, Ints]:
    """Where parts may meet: each pixel of the background belongs to its nearest part, and these fields have borders.

    For each border of two pixels the nearest pixels of both parts, [P, 4] as x, y, x, y, and the numbers of the parts,
    [P, 2], the smaller one first.
    """
    from scipy.ndimage import distance_transform_cdt

    nearest: Any = distance_transform_cdt(part_HW == 0, metric="chessboard", return_indices=True)
    y_HW, x_HW = nearest[1]
    near_HW = part_HW[y_HW, x_HW]
    whole, first, last = slice(None), slice(None, -1), slice(1, None)
    pixels, pairs = [], []
    for here, there in (
        ((whole, first), (whole, last)),
        ((first, whole), (last, whole)),
        ((first, first), (last, last)),
        ((first, last), (last, first)),
    ):
        meet = near_HW[here] != near_HW[there]
        pairs.append(np.stack([near_HW[here][meet], near_HW[there][meet]], axis=1))
        ends = (x_HW[here][meet], y_HW[here][meet], x_HW[there][meet], y_HW[there][meet])
        pixels.append(np.stack(ends, axis=1))
    pixels_P4, part_P2 = np.concatenate(pixels).astype(np.int64), np.concatenate(pairs).astype(np.int64)
    swap = part_P2[:, 0] > part_P2[:, 1]
    pixels_P4[swap] = pixels_P4[swap][:, [2, 3, 0, 1]]
    return pixels_P4, np.sort(part_P2, axis=1)


def _straight(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels from one to another: slanting as far as both sides are apart, then straight; both ends included."""
    (x, y), pixels = start, [start]
    while (x, y) != end:
        x += (end[0] > x) - (end[0] < x)
        y += (end[1] > y) - (end[1] < y)
        pixels.append((x, y))
    return pixels


def _walk(corners: _Corners, bridges: list[_Bridge]) -> Iterator[Point]:
    """All outlines in one go: along the first one, over each bridge to another, around it, and back."""
    at_edge: dict[int, list[_Bridge]] = {}
    for bridge in (*bridges, *(bridge.back for bridge in bridges)):
        at_edge.setdefault(bridge.start[0], []).append(bridge)
    stack: list[Iterator[Point | _Bridge]] = [_around(corners, at_edge, corners.by_column_E[0], came_by=None)]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, _Bridge):
            stack.append(_over(corners, at_edge, step))
        else:
            yield step


def _over(corners: _Corners, at_edge: dict[int, list[_Bridge]], bridge: _Bridge) -> Iterator[Point | _Bridge]:
    way = [_place(corners, *bridge.start), *_points(bridge.over), _place(corners, *bridge.end)]
    yield from way
    yield from _around(corners, at_edge, corners.by_column_E[2 * bridge.end[0]], came_by=bridge)
    yield from reversed(way)


def _around(
    corners: _Corners, at_edge: dict[int, list[_Bridge]], first: int, *, came_by: _Bridge | None
) -> Iterator[Point | _Bridge]:
    """Once around the outline of a corner, down its vertical edge first: from the row of the bridge, and to it."""
    entry = came_by.end[1] if came_by else corners.y_E[first]
    before: list[_Bridge] = []
    corner = int(first)
    if came_by is None:
        yield corners.point(corner)
    while True:
        other = int(corners.along_E[corner])
        down = corners.y_E[other] > corners.y_E[corner]
        here = [b for b in at_edge.get(int(corners.edge_E[corner]), ()) if not _is_back(b, came_by)]
        here.sort(key=lambda bridge: bridge.start[1], reverse=not down)
        if corner == first:
            before = [bridge for bridge in here if bridge.start[1] < entry]
            here = here[len(before) :]
        yield from here
        yield corners.point(other)
        corner = int(corners.across_E[other])
        if corner == first:
            break
        yield corners.point(corner)
    if came_by is not None:
        yield corners.point(corner)
        yield from before


def _is_back(bridge: _Bridge, came_by: _Bridge | None) -> bool:
    return came_by is not None and bridge == came_by.back


def _place(corners: _Corners, edge: int, row: int) -> Point:
    """The point on a vertical edge beside a row."""
    return corners.point(int(corners.by_column_E[2 * edge]))[0], row + 0.5


def _points(pixels: tuple[tuple[int, int], ...]) -> Iterator[Point]:
    """The ends of the straight and the slanting runs of a way; slanting ones enter rows and columns at once."""
    steps = [(x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in pairwise(pixels)]
    end = 0
    for (dx, dy), run in groupby(steps):
        start, end = end, end + len(list(run))
        for x, y in (pixels[start], pixels[end]):
            if dx and dy:
                yield x + (_SLANT_PX if dx > 0 else 1 - _SLANT_PX), y + (_SLANT_PX if dy > 0 else 1 - _SLANT_PX)
            else:
                yield x + 0.5, y + 0.5
