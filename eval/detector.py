"""An analytic detector for the embedded world: connected regions, palette colours, template correlation. No weights.

A region's confidence is the best normalised correlation of its soft mask with the shapes of the world at several
sizes, subpixel places and blurs, so a shape that is distorted loses confidence before it is taken for another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..data.scene_render import coverage
from ..data.scene_world import PALETTE, World
from .geneval import Detection

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

THRESHOLD = 0.75
COUNTING_THRESHOLD = 0.80
#: What moves every score besides the pictures, for a protocol; chosen on corrupted renders and frozen since.
THRESHOLDS = {"score": THRESHOLD, "counting": COUNTING_THRESHOLD}

_SIDE = 24  # samples along each side of a descriptor
_MARGIN = 0.14  # of the box; without it a square's descriptor is constant and correlates with nothing
_CONTRAST = 30.0  # gray levels by which the foreground differs from the background at least
_NOISY = 8.0  # noise in gray levels from which pictures are median filtered: it wears thin shapes of few pixels
_FAINT = 0.25  # covered share of a pixel from which it counts for the box
_FAR = 90.0  # distance from the nearest palette colour at which none is named
_LONG = 1.5  # aspect ratio from which a region's confidence is halved: every shape of the world is as wide as high
_OFFSETS = (0.0, 0.5)  # subpixel places of the templates
_BLURS = (0.0, 0.5, 1.0, 2.0)  # in pixels
_LARGEST = 32  # regions looked at, largest first


@dataclass(frozen=True)
class Region:
    """One connected region of a mask."""

    rows: slice
    columns: slice
    pixels: Bools  #: inside the window, true where the region is


class SceneDetector:
    """Finds the shapes of a world in pictures of it, however the pictures were made.

    Args:
        world: decides shapes, palette, sizes and line thickness; pictures must have its size.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._palette = np.asarray([PALETTE[name] for name in world.colors], dtype=np.float32)
        self._names, self._bank = _bank(world)
        self._least_area = max(6.0, 0.5 * (world.radius[0] * world.size) ** 2)

    def detect(self, image: NDArray[np.uint8]) -> dict[str, list[Detection]]:
        """Every region that resembles a shape, as a detection of the shape it resembles most.

        Args:
            image: ``(size, size, 3)`` uint8.

        Returns:
            By shape, best first; confidences in [-1, 1]. A shape that was not found has no entry, and a region whose
            colour is far from the palette has the colour None.

        Raises:
            ValueError: if the image has another size or dtype.
        """
        expected = (self.world.size, self.world.size, 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 {expected}, got {image.dtype} {image.shape}; convert it first")
        pixels, background, noise = _cleaned(image.astype(np.float32))
        offset = pixels - background
        distance = np.sqrt(np.einsum("hwc,hwc->hw", offset, offset))
        found: dict[str, list[Detection]] = {}
        for region in regions(distance > max(_CONTRAST, 4 * noise), self._least_area, _LARGEST):
            shape, detection = self._read(region, offset, distance, background)
            found.setdefault(shape, []).append(detection)
        for detections in found.values():
            detections.sort(key=lambda detection: -detection.score)
        return found

    def _read(self, region: Region, offset: Floats, distance: Floats, background: Floats) -> tuple[str, Detection]:
        """Colour and shape of one region."""
        inside = offset[region.rows, region.columns][region.pixels]
        color = _typical(inside, distance[region.rows, region.columns][region.pixels])
        share = offset[region.rows, region.columns] @ (color / float(color @ color))
        rows, columns, cover = _trimmed(np.where(region.pixels, share, 0))
        shape, score = self._match(_descriptor(cover))
        if max(cover.shape) > _LONG * min(cover.shape):
            score /= 2
        left, top = region.columns.start + columns.start, region.rows.start + rows.start
        box = (float(left), float(top), float(left + cover.shape[1]), float(top + cover.shape[0]))
        return shape, Detection(box, score, self._color(background + color))

    def _match(self, descriptor: Floats) -> tuple[str, float]:
        correlations = self._bank @ descriptor
        best = int(correlations.argmax())
        return self._names[best], float(correlations[best])

    def _color(self, color: Floats) -> str | None:
        distances = np.linalg.norm(self._palette - color, axis=1)
        nearest = int(distances.argmin())
        return None if distances[nearest] > _FAR else self.world.colors[nearest]


def regions(mask: Bools, least_area: float, most: int) -> list[Region]:
    """The connected regions of a mask, diagonal neighbours included.

    Args:
        mask: ``(H, W)``.
        least_area: pixels a region must have to be returned.
        most: number of regions returned at most, the largest.

    Returns:
        Largest first.
    """
    rows, starts, stops = _runs(mask)
    roots = _connected(rows, starts, stops, mask.shape[1])
    names, members = np.unique(roots, return_inverse=True)
    areas = np.bincount(members, weights=stops - starts, minlength=len(names))
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.repeat(members + 1, stops - starts)
    order = [int(name) for name in np.argsort(-areas, kind="stable")[:most] if areas[name] >= least_area]
    found: list[Region] = []
    for name in order:
        own = members == name
        height = slice(int(rows[own][0]), int(rows[own][-1]) + 1)
        width = slice(int(starts[own].min()), int(stops[own].max()))
        found.append(Region(height, width, labels[height, width] == name + 1))
    return found


def _runs(mask: Bools) -> tuple[Ints, Ints, Ints]:
    """Row, first column and column after the last of every horizontal run of true pixels, in reading order."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    return rows, starts, np.nonzero(steps == -1)[1]


def _connected(rows: Ints, starts: Ints, stops: Ints, width: int) -> Ints:
    """For every run the first run of its region: runs of neighbouring rows that touch or overlap are merged."""
    stride = width + 2
    first = np.searchsorted(rows * stride + stops, (rows + 1) * stride + starts, side="left")
    last = np.searchsorted(rows * stride + starts, (rows + 1) * stride + stops, side="right")
    parents = list(range(len(rows)))
    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for below in range(low, high):
            one, other = _root(parents, run), _root(parents, below)
            parents[max(one, other)] = min(one, other)
    return np.asarray([_root(parents, run) for run in range(len(parents))], dtype=np.int64)


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = run = parents[parents[run]]
    return run


def _cleaned(pixels: Floats) -> tuple[Floats, Floats, float]:
    """The picture with strong noise filtered, its background colour, and the noise that is left."""
    background, noise = _border(pixels)
    if noise > _NOISY:
        pixels = _median_filtered(pixels)
        background, noise = _border(pixels)
    return pixels, background, noise


def _border(pixels: Floats) -> tuple[Floats, float]:
    """Median colour of the picture's border, and its noise as a scaled median absolute deviation."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    middle = np.median(border, axis=0)
    return middle, 1.4826 * float(np.median(np.abs(border - middle)))


def _median_filtered(pixels: Floats) -> Floats:
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    return np.median(windows, axis=(-2, -1)).astype(np.float32)


def _typical(values: Floats, distance: Floats) -> Floats:
    """The most central of the 40 % of the values that are most distant from the background: edges are mixtures.

    It is one of the values, not their median, which may be the background itself where two things have merged.
    """
    count = max(1, round(0.4 * len(distance)))
    distant = values[np.argpartition(-distance, count - 1)[:count]]
    return distant[int(np.abs(distant - np.median(distant, axis=0)).sum(1).argmin())]


def _trimmed(share: Floats) -> tuple[slice, slice, Floats]:
    """Covered shares clipped to [0, 1], without outer rows and columns that are hardly covered.

    How faint an edge still belongs to a region depends on its contrast; the trimmed window does not.
    """
    cover = np.clip(share, 0, 1).astype(np.float32)
    rows, columns = (np.flatnonzero(cover.max(axis) >= _FAINT) for axis in (1, 0))
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return *window, cover[window]


def _descriptor(cover: Floats) -> Floats:
    """A region's window and a margin around it, resampled to a fixed grid, with zero mean and unit length."""
    samples = (_resampler(cover.shape[0]) @ cover @ _resampler(cover.shape[1]).T).ravel()
    samples = samples - samples.mean()
    return samples / max(float(np.linalg.norm(samples)), 1e-6)


def _resampler(length: int) -> Floats:
    """``(_SIDE, length)`` weights: triangles at evenly spaced points, wide enough to see every pixel."""
    step = length * (1 + 2 * _MARGIN) / _SIDE
    points = (np.arange(_SIDE, dtype=np.float32) + 0.5) * step - length * _MARGIN - 0.5
    width = max(step, 1.0)
    reach = np.abs(points[:, None] - np.arange(length, dtype=np.float32)) / width
    return np.maximum(1 - reach, 0).astype(np.float32) / np.float32(width)


def _bank(world: World) -> tuple[list[str], Floats]:
    """Shape names and descriptors of templates seen through the same steps as a picture's regions."""
    named = [(shape, descriptor) for shape in world.shapes for descriptor in _templates(shape, world)]
    return [name for name, _ in named], np.stack([descriptor for _, descriptor in named])


def _templates(shape: str, world: World) -> Iterator[Floats]:
    sizes = np.linspace(world.radius[0], world.radius[1], 4) * world.size
    for radius, offset, blur in product(sizes, _OFFSETS, _BLURS):
        reach = int(radius + 3 * blur) + 3
        rows, columns, cover = coverage(
            shape, reach + offset, reach + offset, float(radius), size=2 * reach + 1, thickness=world.thickness
        )
        canvas = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
        canvas[rows, columns] = cover
        canvas = _blurred(canvas, blur)
        peak = _typical(canvas[canvas > _FAINT][:, None], canvas[canvas > _FAINT])
        yield _descriptor(_trimmed(canvas / peak)[2])


def _blurred(canvas: Floats, sigma: float) -> Floats:
    if not sigma:
        return canvas
    distance = np.subtract.outer(np.arange(len(canvas)), np.arange(len(canvas)))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return weights @ canvas @ weights.T
