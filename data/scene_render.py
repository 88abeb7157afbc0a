"""Scenes to pixels: each shape is an inequality over its unit box, counted on a 4 x 4 grid inside every pixel."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .scene_world import PALETTE, Scene, World

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_GRID = 4
_TIPS = 2 * np.pi * np.arange(5) / 5
_HEART = (1.1390, 1.2366, -1.0)  # right, top and bottom of (x^2 + y^2 - 1)^3 = x^2 y^3


def render(scene: Scene, world: World) -> NDArray[np.uint8]:
    """Draw a scene.

    Args:
        scene: things whose boxes lie inside the picture.
        world: decides the side, the background, the noise and the line thickness.

    Returns:
        ``(size, size, 3)`` uint8; the same scene always gives the same pixels.
    """
    canvas = np.full((world.size, world.size, 3), world.background, dtype=np.float32)
    for thing in scene.things:
        place = (thing.x, thing.y, thing.radius)
        rows, columns, cover = coverage(thing.shape, *place, size=world.size, thickness=world.thickness)
        color = np.asarray(PALETTE[thing.color], dtype=np.float32)
        canvas[rows, columns] += cover[..., None] * (color - canvas[rows, columns])
    if world.noise:
        canvas += world.noise * np.random.default_rng(scene.noise_seed).standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def coverage(
    shape: str, x: float, y: float, radius: float, *, size: int, thickness: float
) -> tuple[slice, slice, Floats]:
    """How much of each pixel a shape covers.

    Args:
        shape: one of ``scene_world.SHAPES``.
        x: centre from the left edge, in pixels.
        y: centre from the top edge, in pixels.
        radius: half the side of the shape's box, in pixels.
        size: side of the picture; the window is cut to it.
        thickness: see ``World.thickness``.

    Returns:
        The window's rows and columns, and ``(rows, columns)`` float32 covered shares in [0, 1].
    """
    rows, v = _samples(y, radius, size)
    columns, u = _samples(x, radius, size)
    inside = _shapes(thickness)[shape](u[None, :], v[:, None])
    counts = inside.reshape(v.size // _GRID, _GRID, u.size // _GRID, _GRID).sum((1, 3), dtype=np.float32)
    return rows, columns, counts / _GRID**2


def _samples(center: float, radius: float, size: int) -> tuple[slice, Floats]:
    """The pixels a shape may touch along one axis, and the sample points in them in units of the radius."""
    low, high = max(int(center - radius), 0), min(int(center + radius) + 1, size)
    points = low + (np.arange((high - low) * _GRID) + 0.5) / _GRID
    return slice(low, high), ((points - center) / radius).astype(np.float32)


def _shapes(thickness: float) -> dict[str, Callable[[Floats, Floats], Bools]]:
    return {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "diamond": _diamond,
        "cross": partial(_cross, thickness=thickness),
        "ring": partial(_ring, thickness=thickness),
        "star": _star,
        "heart": _heart,
    }


def _circle(u: Floats, v: Floats) -> Bools:
    return u * u + v * v <= 1


def _square(u: Floats, v: Floats) -> Bools:
    return (abs(u) <= 1) & (abs(v) <= 1)


def _triangle(u: Floats, v: Floats) -> Bools:
    return (2 * abs(u) <= v + 1) & (v <= 1)


def _diamond(u: Floats, v: Floats) -> Bools:
    return abs(u) + abs(v) <= 1


def _cross(u: Floats, v: Floats, thickness: float) -> Bools:
    return _square(u, v) & ((abs(u) <= thickness) | (abs(v) <= thickness))


def _ring(u: Floats, v: Floats, thickness: float) -> Bools:
    distance = u * u + v * v
    return (distance <= 1) & (distance >= (1 - thickness) ** 2)


def _star(u: Floats, v: Floats) -> Bools:
    """A pentagram: inside all five of its lines is the middle, beyond exactly one of them is a tip."""
    x, y = np.sin(_TIPS[1]) * u, (v + 1) / 2 * (1 + np.cos(np.pi / 5)) - 1
    beyond = [np.sin(angle) * x - np.cos(angle) * y > np.cos(_TIPS[1]) for angle in _TIPS]
    return np.less_equal(np.sum(beyond, axis=0, dtype=np.int8), 1)


def _heart(u: Floats, v: Floats) -> Bools:
    right, top, bottom = _HEART
    x2, y = (right * u) ** 2, top + (v + 1) / 2 * (bottom - top)
    return (x2 + y * y - 1) ** 3 <= x2 * y**3
