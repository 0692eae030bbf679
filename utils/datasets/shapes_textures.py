"""Colours, noise, backgrounds and surface textures of the images of the "shapes" data set.

The numbers are the same on every machine. Pixels are computed only by operations that IEEE 754 rounds exactly (+ - * /
sqrt, integers), and sines are rounded. Legend: H W rows and columns, x y pixels, u v coordinates in a shape (-1...1).
"""

import colorsys
import math

import numpy as np

Rng = np.random.Generator
Field = np.ndarray  # (h, w) float32, or (1, w) and (h, 1) that broadcast to it
Color = np.ndarray  # (3, 1, 1) float32 blue, green, red, 0...255


def uniform(rng: Rng, low: float, high: float) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * float(rng.random())


def chance(rng: Rng, probability: float) -> bool:
    """Return True with the given probability."""
    return float(rng.random()) < probability


def direction(rng: Rng, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Return a unit vector at a random angle between `low` and `high` turns."""
    return on_circle(uniform(rng, low, high))


def on_circle(turn: float, radius: float = 1.0) -> tuple[float, float]:
    """Return the point `turn` whole turns clockwise from the top.

    It is rounded, because the last digit of sin differs between machines.
    """
    angle = 2 * math.pi * turn
    return round(radius * math.sin(angle), 6), round(-radius * math.cos(angle), 6)


# ---------------------------------------------------------------- colours and noise


def color(hue: float, saturation: float, value: float) -> Color:
    """Return a colour from hue in turns (any number), saturation and value in 0...1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return np.array([[[blue]], [[green]], [[red]]], np.float32) * 255


def random_color(rng: Rng) -> Color:
    """Draw a colour that is not almost black."""
    return color(uniform(rng, 0, 1), uniform(rng, 0, 1), uniform(rng, 0.05, 1))


def mix(first: np.ndarray, second: np.ndarray, share: Field | float) -> np.ndarray:
    """Return first (1 - share) + second share."""
    blend = (second - first) * share
    blend += first
    return blend


def smoothstep(t: np.ndarray) -> np.ndarray:
    """Return 0 below 0, 1 above 1, and 3 t^2 - 2 t^3 between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def triangle_wave(t: Field) -> Field:
    """Return the triangle wave of period 1 between 0 and 1."""
    return np.abs(t - np.floor(t) - 0.5) * 2


def interpolate(lattice: np.ndarray, length: int, cell: float, *, axis: int) -> np.ndarray:
    """Interpolate lattice values, `cell` pixels apart, smoothly to `length` pixels along an axis."""
    at = np.arange(length, dtype=np.float32) / np.float32(cell)
    low = at.astype(np.int64)
    share = smoothstep(at - np.floor(at))  # float32; integers in it would make it float64
    return mix(lattice.take(low, axis), lattice.take(low + 1, axis), share if axis else share[:, None])


def value_noise(rng: Rng, shape: tuple[int, int], cell: float) -> Field:
    """Return smooth noise (H, W) in 0...1 with bumps about `cell` pixels wide."""
    H, W = shape
    lattice = rng.random((int(H / cell) + 2, int(W / cell) + 2), dtype=np.float32)
    return interpolate(interpolate(lattice, W, cell, axis=1), H, cell, axis=0)


def fractal_noise(rng: Rng, shape: tuple[int, int], cell: float, octaves: int = 3) -> Field:
    """Return the sum of noise on several scales (H, W), stretched to 0...1."""
    layers = sum(value_noise(rng, shape, max(cell / 2**k, 2)) * np.float32(0.5**k) for k in range(octaves))
    return smoothstep(layers / np.float32(2 - 0.5 ** (octaves - 1)) * np.float32(1.4) - np.float32(0.2))


def pixels(shape: tuple[int, int]) -> tuple[Field, Field]:
    """Return x (1, W) and y (H, 1) of the pixel centres."""
    return np.arange(shape[1], dtype=np.float32)[None] + 0.5, np.arange(shape[0], dtype=np.float32)[:, None] + 0.5


# ---------------------------------------------------------------- backgrounds: (3, H, W) from a palette of colours


def haze(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Return broad bands of two colours under clouds of a third."""
    x, y = pixels(shape)
    cx, cy = direction(rng)
    t = (x * cx + y * cy) / np.float32(max(shape)) + uniform(rng, 0, 1)
    ground = mix(palette[0], palette[1], smoothstep(triangle_wave(t * 0.7)))
    return mix(ground, palette[2], fractal_noise(rng, shape, uniform(rng, 60, 160)) * 0.6)


def hills(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Return a sky and three ridges. The nearer a ridge, the darker and rougher."""
    _, y = pixels(shape)
    canvas = mix(palette[0] * 0.3 + 178, palette[0], y / np.float32(shape[0])) + fractal_noise(rng, shape, 120) * 18
    horizon = uniform(rng, 0.15, 0.5)
    for layer in range(3):
        ridge = fractal_noise(rng, (1, shape[1]), uniform(rng, 60, 200), 4) * uniform(rng, 30, 110)
        top = shape[0] * (horizon + 0.2 * layer) - ridge  # (1, W)
        soil = mix(palette[layer] * 0.85, palette[1] * 0.6, fractal_noise(rng, shape, 12 + 20 * layer)) * (
            1 - 0.15 * layer
        )
        canvas = mix(canvas, soil, np.clip(y - top, 0, 1))
    return canvas


def marble(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Return veins along the contour lines of noise."""
    noise = fractal_noise(rng, shape, uniform(rng, 60, 180), 4)
    veins = triangle_wave(noise * uniform(rng, 2, 6))
    return mix(mix(palette[0], palette[1], noise), palette[2], veins * veins * 0.7)


def stripes(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Return bent stripes of two colours under clouds of a third."""
    x, y = pixels(shape)
    cx, cy = direction(rng)
    bent = x * cx + y * cy + fractal_noise(rng, shape, 150, 1) * uniform(rng, 0, 60)
    bands = smoothstep((triangle_wave(bent / uniform(rng, 18, 90)) - 0.5) * uniform(rng, 1, 8) + 0.5)
    return mix(mix(palette[0], palette[1], bands), palette[2], fractal_noise(rng, shape, 40) * 0.35)


def tiles(rng: Rng, shape: tuple[int, int], palette: list[Color]) -> np.ndarray:
    """Return checkers, bricks or boards: rows of stones in shades of two colours, with joints between them."""
    x, y = pixels(shape)
    (cx, cy), height = direction(rng), uniform(rng, 22, 70)
    length = height * float(rng.choice([1.0, 2.2, 7.0]))
    across = (y * cx - x * cy) / height
    row = np.floor(across)
    along = (x * cx + y * cy) / length + row * 0.5
    column = np.floor(along)
    shades = rng.random((16, 16), dtype=np.float32)[row.astype(np.int64) % 16, column.astype(np.int64) % 16]
    stones = mix(palette[0], palette[1], shades * 0.8 + fractal_noise(rng, shape, 25) * 0.2)
    joint = np.minimum((0.5 - np.abs(across - row - 0.5)) * height, (0.5 - np.abs(along - column - 0.5)) * length)
    return mix(palette[2] * 0.7, stones, np.clip(joint - 0.7, 0.25, 1))


BACKGROUNDS = (haze, hills, marble, stripes, tiles)


def background(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Draw one of the backgrounds in a palette of mostly related, rather dull colours, under uneven light."""
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


# ---------------------------------------------------------------- textures: share (h, w) of a shape's second colour


def plain_texture(u: Field, v: Field, rng: Rng) -> Field:
    return np.zeros((1, 1), np.float32)


def gradient_texture(u: Field, v: Field, rng: Rng) -> Field:
    cx, cy = direction(rng)
    return smoothstep((u * cx + v * cy) * 0.6 + 0.5)


def striped_texture(u: Field, v: Field, rng: Rng) -> Field:
    (cx, cy), period = direction(rng), uniform(rng, 0.25, 0.7)
    return smoothstep((triangle_wave((u * cx + v * cy) / period) - 0.5) * 5 + 0.5)


def checkered_texture(u: Field, v: Field, rng: Rng) -> Field:
    period = uniform(rng, 0.5, 1.0)
    return smoothstep((triangle_wave(u / period) - 0.5) * (triangle_wave(v / period) - 0.5) * 25 + 0.5)


def mottled_texture(u: Field, v: Field, rng: Rng) -> Field:
    h, w = np.broadcast_shapes(u.shape, v.shape)
    return fractal_noise(rng, (h, w), max(w * 0.15, 3))


TEXTURES = (
    plain_texture,
    plain_texture,
    gradient_texture,
    gradient_texture,
    striped_texture,
    checkered_texture,
    mottled_texture,
)
