"""Colours, noise, backgrounds and surface textures of the "shapes" pictures.

Only operations that IEEE 754 rounds exactly (+ - * / sqrt, integers) touch pixels, and sines are rounded: the same
numbers come out on every machine. Legend: H W rows and columns; x y pixels; u v coordinates in a shape (-1...1).
"""

import colorsys
import math

import numpy as np

Rng = np.random.Generator
Field = np.ndarray  # (h, w) float32, or (1, w) and (h, 1) that broadcast to it
Color = np.ndarray  # (3, 1, 1) float32 blue, green, red, 0...255


def uniform(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def chance(rng: Rng, share: float) -> bool:
    return float(rng.random()) < share


def direction(rng: Rng, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Unit vector at a random angle between `low` and `high` turns."""
    return on_circle(uniform(rng, low, high))


def on_circle(turn: float, radius: float = 1.0) -> tuple[float, float]:
    """Point `turn` whole turns clockwise from the top; rounded, for the last digit of sin differs between machines."""
    angle = 2 * math.pi * turn
    return round(radius * math.sin(angle), 6), round(-radius * math.cos(angle), 6)


# ---------------------------------------------------------------- colours and textures


def color(hue: float, saturation: float, value: float) -> Color:
    """Hue in turns (any number), the other two 0...1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return np.array([[[blue]], [[green]], [[red]]], np.float32) * 255


def any_color(rng: Rng) -> Color:
    return color(uniform(rng, 0, 1), uniform(rng, 0, 1), uniform(rng, 0.05, 1))


def mix(first: np.ndarray, second: np.ndarray, share: Field) -> np.ndarray:
    blend = (second - first) * share
    blend += first
    return blend


def smooth(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, a smooth S between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def wave(t: Field) -> Field:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs(t - np.floor(t) - 0.5) * 2


def stretch(lattice: np.ndarray, length: int, cell: float, *, axis: int) -> np.ndarray:
    """Lattice values, `cell` pixels apart, smoothly interpolated to `length` pixels along an axis."""
    at = np.arange(length, dtype=np.float32) / np.float32(cell)
    low = at.astype(np.int64)
    share = smooth(at - np.floor(at))  # float32: integers mixed in would make it, and all after it, float64
    return mix(lattice.take(low, axis), lattice.take(low + 1, axis), share if axis else share[:, None])


def lattice_noise(rng: Rng, shape: tuple[int, int], cell: float) -> Field:
    """Smooth values in 0...1 whose bumps are about `cell` pixels wide."""
    H, W = shape
    lattice = rng.random((int(H / cell) + 2, int(W / cell) + 2), dtype=np.float32)
    return stretch(stretch(lattice, W, cell, axis=1), H, cell, axis=0)


def cloud(rng: Rng, shape: tuple[int, int], cell: float, octaves: int = 3) -> Field:
    """Noise on several scales, spread over 0...1."""
    layers = sum(lattice_noise(rng, shape, max(cell / 2**k, 2)) * np.float32(0.5**k) for k in range(octaves))
    return smooth(layers / np.float32(2 - 0.5 ** (octaves - 1)) * np.float32(1.4) - np.float32(0.2))


def pixels(shape: tuple[int, int]) -> tuple[Field, Field]:
    """x (1, W) and y (H, 1) of the pixels' centres."""
    return np.arange(shape[1], dtype=np.float32)[None] + 0.5, np.arange(shape[0], dtype=np.float32)[:, None] + 0.5


# ---------------------------------------------------------------- backgrounds: (3, H, W) from a palette of colours


def haze(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    x, y = pixels(shape)
    cx, cy = direction(rng)
    t = (x * cx + y * cy) / np.float32(max(shape)) + uniform(rng, 0, 1)
    ground = mix(palette[0], palette[1], smooth(wave(t * 0.7)))
    return mix(ground, palette[2], cloud(rng, shape, uniform(rng, 60, 160)) * 0.6)


def hills(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """A sky and three ridges, each nearer one darker and rougher."""
    _, y = pixels(shape)
    canvas = mix(palette[0] * 0.3 + 178, palette[0], y / np.float32(shape[0])) + cloud(rng, shape, 120) * 18
    horizon = uniform(rng, 0.15, 0.5)
    for layer in range(3):
        ridge = cloud(rng, (1, shape[1]), uniform(rng, 60, 200), 4) * uniform(rng, 30, 110)
        top = shape[0] * (horizon + 0.2 * layer) - ridge  # (1, W)
        soil = mix(palette[layer] * 0.85, palette[1] * 0.6, cloud(rng, shape, 12 + 20 * layer)) * (1 - 0.15 * layer)
        canvas = mix(canvas, soil, np.clip(y - top, 0, 1))
    return canvas


def marble(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    noise = cloud(rng, shape, uniform(rng, 60, 180), 4)
    veins = wave(noise * uniform(rng, 2, 6))
    return mix(mix(palette[0], palette[1], noise), palette[2], veins * veins * 0.7)


def stripes(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    x, y = pixels(shape)
    cx, cy = direction(rng)
    bent = x * cx + y * cy + cloud(rng, shape, 150, 1) * uniform(rng, 0, 60)
    bands = smooth((wave(bent / uniform(rng, 18, 90)) - 0.5) * uniform(rng, 1, 8) + 0.5)
    return mix(mix(palette[0], palette[1], bands), palette[2], cloud(rng, shape, 40) * 0.35)


def tiles(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Checker, bricks or boards: rows of stones in two tones, each its own shade, with joints between."""
    x, y = pixels(shape)
    (cx, cy), height = direction(rng), uniform(rng, 22, 70)
    length = height * float(rng.choice([1.0, 2.2, 7.0]))
    across = (y * cx - x * cy) / height
    row = np.floor(across)
    along = (x * cx + y * cy) / length + row * 0.5
    column = np.floor(along)
    shades = rng.random((16, 16), dtype=np.float32)[row.astype(np.int64) % 16, column.astype(np.int64) % 16]
    stones = mix(palette[0], palette[1], shades * 0.8 + cloud(rng, shape, 25) * 0.2)
    joint = np.minimum((0.5 - np.abs(across - row - 0.5)) * height, (0.5 - np.abs(along - column - 0.5)) * length)
    return mix(palette[2] * 0.7, stones, np.clip(joint - 0.7, 0.25, 1))


BACKGROUNDS = (haze, hills, marble, stripes, tiles)


def background(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """One of the kinds in a palette of mostly related, rather dull colours, under uneven light."""
    hue, value = uniform(rng, 0, 1), uniform(rng, 0.3, 0.85)
    spread = float(rng.choice([0.1, 0.1, 0.5]))
    palette = [
        color(hue + uniform(rng, -spread, spread), uniform(rng, 0.03, 0.6), value + uniform(rng, -0.2, 0.2))
        for _ in range(3)
    ]
    canvas = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](rng, shape, palette)
    x, y = pixels(shape)
    cx, cy = direction(rng)
    return canvas * (1 + (x * cx + y * cy) / np.float32(max(shape)) * np.float32(uniform(rng, 0, 0.3)))


# ---------------------------------------------------------------- coats: share (h, w) of a shape's second colour


def plain(u: Field, v: Field, rng: Rng) -> Field:
    return np.zeros((1, 1), np.float32)


def blended(u: Field, v: Field, rng: Rng) -> Field:
    cx, cy = direction(rng)
    return smooth((u * cx + v * cy) * 0.6 + 0.5)


def striped(u: Field, v: Field, rng: Rng) -> Field:
    (cx, cy), period = direction(rng), uniform(rng, 0.25, 0.7)
    return smooth((wave((u * cx + v * cy) / period) - 0.5) * 5 + 0.5)


def checked(u: Field, v: Field, rng: Rng) -> Field:
    period = uniform(rng, 0.5, 1.0)
    return smooth((wave(u / period) - 0.5) * (wave(v / period) - 0.5) * 25 + 0.5)


def mottled(u: Field, v: Field, rng: Rng) -> Field:
    h, w = np.broadcast_shapes(u.shape, v.shape)
    return cloud(rng, (h, w), max(w * 0.15, 3))


COATS = (plain, plain, blended, blended, striped, checked, mottled)
