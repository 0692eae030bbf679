"""Pictures of the "shapes" data set: eight kinds of solid shapes, many to a picture, on textured, cluttered grounds.

`draw_picture(seed, split, index)` is the whole interface. Every solid shape that is drawn is labelled: most of it can
be seen. Lines, lettering and smears are clutter, never an object. Pixels and boxes are the same on every machine.

Legend: H W rows and columns of a picture, h w those of a window of it; x y pixels; u v coordinates of a shape, which
fits the circle of radius 1, v pointing down; distance: signed, to an outline, negative inside.
"""

import math
from typing import NamedTuple

import numpy as np

from utils.datasets.shapes_textures import (
    COATS,
    Color,
    Field,
    Rng,
    any_color,
    background,
    chance,
    cloud,
    color,
    direction,
    mix,
    on_circle,
    pixels,
    smooth,
    uniform,
)

SPLITS = ("train", "val")
PICTURE_SIZES = ((480, 640), (480, 640), (427, 640), (640, 480), (640, 427), (360, 480), (480, 480), (384, 512))  # H, W
EXTENTS = ((0.04, 0.026, 0.05), (0.06, 0.05, 0.10), (0.40, 0.12, 0.27), (0.50, 0.27, 0.52))  # share, of short side
MAX_OBJECTS = 12
TILT = 0.07  # turns either way: shapes stand upright, more or less, as most things do
TYPICAL_SHARE = 0.9  # of a class's objects wear its typical hue, more or less; the rest any
EMPTY_SHARE = 0.05  # of the pictures show clutter alone
MIN_VISIBLE = 0.75  # of an object's area must show: inside the frame and not covered
MIN_SIDE = 6  # pixels, of a box
MIN_CONTRAST = 100  # distance in blue, green, red between an object and what it lies on

Points = list[tuple[float, float]]


# ---------------------------------------------------------------- shapes: signed distances in their own units


def disc_distance(u: Field, v: Field, *, center: tuple[float, float] = (0, 0), radius: float = 1) -> Field:
    return np.sqrt((u - center[0]) ** 2 + (v - center[1]) ** 2) - radius


def box_distance(u: Field, v: Field, *, half_width: float, half_height: float) -> Field:
    over_u, over_v = np.abs(u) - half_width, np.abs(v) - half_height
    outside = np.sqrt(np.maximum(over_u, 0) ** 2 + np.maximum(over_v, 0) ** 2)
    return outside + np.minimum(np.maximum(over_u, over_v), 0)


def polygon_distance(u: Field, v: Field, points: Points) -> Field:
    """Distance to the nearest edge of a simple polygon; the sign from counting the edges crossed on the way out."""
    nearest = np.full(np.broadcast_shapes(u.shape, v.shape), np.inf, np.float32)  # squared
    inside = np.zeros(nearest.shape, bool)
    for (au, av), (bu, bv) in zip(points, points[1:] + points[:1], strict=True):
        eu, ev, du, dv = bu - au, bv - av, u - au, v - av
        along = np.clip((du * eu + dv * ev) / (eu * eu + ev * ev), 0, 1)
        nearest = np.minimum(nearest, (du - along * eu) ** 2 + (dv - along * ev) ** 2)
        if ev != 0:
            inside ^= ((v < av) != (v < bv)) & (du < dv * (eu / ev))
    return np.sqrt(nearest) * (1 - 2 * inside.astype(np.float32))


def circle(u: Field, v: Field, rng: Rng) -> Field:
    return disc_distance(u, v, radius=0.92)


def square(u: Field, v: Field, rng: Rng) -> Field:
    rounding = uniform(rng, 0, 0.1)
    return box_distance(u, v, half_width=0.76 - rounding, half_height=0.76 - rounding) - rounding


def triangle(u: Field, v: Field, rng: Rng) -> Field:
    rounding = uniform(rng, 0, 0.08)
    return polygon_distance(u, v, [on_circle(k / 3, 1 - 2 * rounding) for k in range(3)]) - rounding


def star(u: Field, v: Field, rng: Rng) -> Field:
    inner = uniform(rng, 0.40, 0.48)
    return polygon_distance(u, v, [on_circle(k / 10, inner if k % 2 else 1) for k in range(10)])


def heart(u: Field, v: Field, rng: Rng) -> Field:
    """A square standing on its corner, with a half disc on each of its two upper sides."""
    half = uniform(rng, 0.60, 0.66)  # of the square's diagonal
    tip, middle, notch, radius = 0.85, 0.85 - half, 0.85 - 2 * half, 0.70711 * half
    body = polygon_distance(u, v, [(0, tip), (-half, middle), (0, notch), (half, middle)])
    left, right = (disc_distance(u, v, center=(c, middle - half / 2), radius=radius) for c in (-half / 2, half / 2))
    return np.minimum(body, np.minimum(left, right))


def crescent(u: Field, v: Field, rng: Rng) -> Field:
    bite = disc_distance(u, v, center=(uniform(rng, 0.42, 0.58), 0), radius=0.86)
    return np.maximum(disc_distance(u, v), -bite)


def arrow(u: Field, v: Field, rng: Rng) -> Field:
    shaft, neck, head = uniform(rng, 0.17, 0.26), uniform(rng, -0.12, 0.08), uniform(rng, 0.62, 0.76)
    right = [(0, -0.98), (head, neck), (shaft, neck), (shaft, 0.95)]
    return polygon_distance(u, v, right + [(-x, y) for x, y in right[:0:-1]])


def cross(u: Field, v: Field, rng: Rng) -> Field:
    arm = uniform(rng, 0.22, 0.32)
    return np.minimum(
        box_distance(u, v, half_width=arm, half_height=0.95), box_distance(u, v, half_width=0.95, half_height=arm)
    )


SHAPES = (circle, square, triangle, star, heart, crescent, arrow, cross)  # class = place in this row
NAMES = tuple(shape.__name__ for shape in SHAPES)


# ---------------------------------------------------------------- the scene: painter's order with owners of pixels


class Window(NamedTuple):
    """A rectangle of the scene in which something is drawn, before it is cut at the frame."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def around(cls, x: float, y: float, reach_x: float, reach_y: float) -> "Window":
        left, top = math.floor(x - reach_x), math.floor(y - reach_y)
        return cls(left, top, math.ceil(x + reach_x) - left, math.ceil(y + reach_y) - top)

    def pixels(self) -> tuple[Field, Field]:
        x, y = pixels((self.height, self.width))
        return x + self.left, y + self.top

    def inside(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What of it lies in a picture of that shape: as rows and columns of the picture, and of the window."""
        top, bottom = (min(max(v, 0), shape[0]) for v in (self.top, self.top + self.height))
        left, right = (min(max(v, 0), shape[1]) for v in (self.left, self.left + self.width))
        return (
            (slice(top, bottom), slice(left, right)),
            (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)),
        )


class Scene:
    """A picture being painted. It knows which object every pixel shows, and refuses what would hide one."""

    def __init__(self, canvas: np.ndarray):
        self.canvas = canvas  # (3, H, W) float32
        self.shape = canvas.shape[1:]
        self.owner = np.zeros(self.shape, np.int32)  # 0: no object; k: object k - 1
        self.classes: list[int] = []
        self.areas: list[int] = []  # whole, in pixels, parts outside the frame included
        self.visible: list[int] = []  # pixels

    def claim(self, place: tuple[slice, slice], solid: np.ndarray, owner: int) -> bool:
        """Give the pixels where `solid` to a new owner, unless an object would then be mostly hidden."""
        taken = np.bincount(self.owner[place][solid], minlength=len(self.areas) + 1)[1:].tolist()
        left = [seen - lost for seen, lost in zip(self.visible, taken, strict=True)]
        if any(lost and seen < MIN_VISIBLE * area for seen, lost, area in zip(left, taken, self.areas, strict=True)):
            return False
        self.visible = left
        self.owner[place][solid] = owner
        return True

    def blend(self, place: tuple[slice, slice], paint: np.ndarray, alpha: Field) -> None:
        target = self.canvas[(slice(None), *place)]
        target += (paint - target) * alpha

    def mean(self, place: tuple[slice, slice], solid: np.ndarray) -> Color:
        """Mean colour under a mask, summed in integers so that the order of adding does not matter."""
        total = self.canvas[(slice(None), *place)][:, solid].astype(np.int64).sum(axis=1)
        return (total / max(int(solid.sum()), 1)).astype(np.float32).reshape(3, 1, 1)

    def boxes(self) -> list[tuple[int, int, int, int, int]]:
        """(class, left, top, right, bottom) in pixels, right and bottom exclusive, of what each object shows."""
        found = []
        for number, kind in enumerate(self.classes, 1):
            columns, rows = (np.flatnonzero((self.owner == number).any(axis)) for axis in (0, 1))
            found.append((kind, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        return found


# ---------------------------------------------------------------- clutter


def stroke(
    scene: Scene,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    width: float,
    paint: Color,
    alpha: float = 1.0,
) -> None:
    """A straight line with round ends; left out where it would hide an object."""
    (ax, ay), (bx, by) = start, end
    reach = width / 2 + 1
    window = Window.around((ax + bx) / 2, (ay + by) / 2, abs(bx - ax) / 2 + reach, abs(by - ay) / 2 + reach)
    place, part = window.inside(scene.shape)
    x, y = window.pixels()
    dx, dy, ex, ey = x - ax, y - ay, bx - ax, by - ay
    along = np.clip((dx * ex + dy * ey) / max(ex * ex + ey * ey, 1e-6), 0, 1)
    cover = np.clip(width / 2 + 0.5 - np.sqrt((dx - along * ex) ** 2 + (dy - along * ey) ** 2), 0, 1)[part]
    if scene.claim(place, cover > 0.5, 0):
        scene.blend(place, paint, cover * alpha)


def scribble(scene: Scene, rng: Rng) -> None:
    """A bent line: a wire, a twig, a scratch."""
    H, W = scene.shape
    x, y = uniform(rng, 0, W), uniform(rng, 0, H)
    turn, step = uniform(rng, 0, 1), uniform(rng, 15, 90)
    width, paint, alpha = uniform(rng, 1, 5), any_color(rng), uniform(rng, 0.4, 1)
    for _ in range(int(rng.integers(2, 8))):
        turn += uniform(rng, -0.14, 0.14)
        dx, dy = on_circle(turn, step)
        stroke(scene, (x, y), (x + dx, y + dy), width=width, paint=paint, alpha=alpha)
        x, y = x + dx, y + dy


def lettering(scene: Scene, rng: Rng) -> None:
    """A row or two of made-up letters, each a bent line over a grid of 3 by 3 points."""
    size, (cx, cy), paint = uniform(rng, 9, 30), direction(rng, 0.15, 0.35), any_color(rng)
    x0, y0 = uniform(rng, 0, scene.shape[1] * 0.8), uniform(rng, 0, scene.shape[0])
    for row in range(int(rng.integers(1, 3))):
        for letter in range(int(rng.integers(4, 11))):
            nodes = rng.permutation(9)[: int(rng.integers(3, 5))].tolist()
            corners = [((n % 3) * 0.28 + letter * 0.85, (n // 3) * 0.4 + row * 1.4) for n in nodes]
            points = [(x0 + size * (a * cx - b * cy), y0 + size * (a * cy + b * cx)) for a, b in corners]
            for start, end in zip(points, points[1:], strict=False):
                stroke(scene, start, end, width=max(1.0, size * 0.11), paint=paint)


def smear(scene: Scene, rng: Rng) -> None:
    """A ragged stain, longer than wide, without a clear edge."""
    reach = uniform(rng, 15, 90)
    window = Window.around(uniform(rng, 0, scene.shape[1]), uniform(rng, 0, scene.shape[0]), reach, reach)
    place, part = window.inside(scene.shape)
    (cx, cy), flat = direction(rng), uniform(rng, 2, 4)
    x, y = pixels((window.height, window.width))
    u, v = x / reach - 1, y / reach - 1
    a, b = u * cx + v * cy, (v * cx - u * cy) * flat
    ragged = cloud(rng, (window.height, window.width), max(reach * 0.35, 4)) * 1.1
    scene.blend(place, any_color(rng), (smooth(1 - (a * a + b * b) - ragged) * uniform(rng, 0.4, 0.9))[part])


CLUTTER = (scribble, scribble, lettering, smear)


# ---------------------------------------------------------------- objects


class Pose(NamedTuple):
    x: float
    y: float
    radius: float  # pixels
    turn: tuple[float, float]
    squeeze: float  # height over width, before turning

    def window(self, margin: float = 1) -> Window:
        reach = self.radius * max(self.squeeze, 1) + margin
        return Window.around(self.x, self.y, reach, reach)

    def local(self, window: Window) -> tuple[Field, Field]:
        x, y = window.pixels()
        dx, dy = (x - self.x) / self.radius, (y - self.y) / self.radius
        cx, cy = self.turn
        return dx * cx + dy * cy, (dy * cx - dx * cy) / self.squeeze


def any_pose(rng: Rng, shape: tuple[int, int]) -> Pose:
    _, low, high = EXTENTS[int(np.searchsorted(np.cumsum([e[0] for e in EXTENTS]), rng.random()))]
    radius = round(max(min(shape) * low * (high / low) ** float(rng.random()), 10) / 2, 3)
    upright = 0.25  # of a turn: the direction along which u grows
    turn = direction(rng, upright - TILT, upright + TILT)
    return Pose(uniform(rng, 0, shape[1]), uniform(rng, 0, shape[0]), radius, turn, uniform(rng, 0.87, 1.15))


def contrasting_color(rng: Rng, ground: Color, hue: tuple[float, float] = (0, 1)) -> Color:
    """A random colour, its hue in a range, that stands out; the best of twelve where none does."""
    tried = []
    for _ in range(12):
        paint = color(uniform(rng, *hue), uniform(rng, 0.15, 1), uniform(rng, 0.1, 1))
        tried.append((float(np.sqrt(((paint - ground) ** 2).astype(np.int64).sum())), len(tried), paint))
        if tried[-1][0] >= MIN_CONTRAST:
            break
    return max(tried)[2]


def any_hue(rng: Rng, kind: int) -> tuple[float, float]:
    """A range of hues for a shape of this class: around the class's own, or all of them."""
    middle = kind / len(SHAPES)
    return (middle - 0.05, middle + 0.05) if chance(rng, TYPICAL_SHARE) else (0, 1)


def coat(rng: Rng, ground: Color, u: Field, v: Field, depth: Field, kind: int) -> np.ndarray:
    """Paint (3, h, w) for a shape of class `kind`: a texture of two colours, light from one side, at times an outline.

    depth: pixels from the edge, inwards.
    """
    size = float(u.shape[1])
    first = contrasting_color(rng, ground, any_hue(rng, kind))
    second = mix(first, contrasting_color(rng, ground), uniform(rng, 0.3, 0.8))
    texture = COATS[int(rng.integers(len(COATS) if size > 36 else 4))]
    paint = mix(first, second, texture(u, v, rng))
    cx, cy = direction(rng)
    paint = paint * (1 + (u * cx + v * cy) * uniform(rng, 0, 0.3))
    if chance(rng, 0.4):  # a rounded rim
        paint = paint * (0.65 + 0.35 * smooth(depth / (size * 0.09)))
    if chance(rng, 0.35) and size > 24:
        rim = color(uniform(rng, 0, 1), uniform(rng, 0, 0.6), float(rng.choice([0.08, 0.97])))
        paint = mix(rim, paint, np.clip(depth - max(1.0, size * uniform(rng, 0.01, 0.035)), 0, 1))
    return np.clip(paint, 0, 255)


def shadow(
    scene: Scene, rng: Rng, place: tuple[slice, slice], part: tuple[slice, slice], *, distance: Field, radius: float
) -> None:
    """Darken what lies beside an object: its outline moved by whole pixels, with a soft edge."""
    reach, soft = uniform(rng, 0, 0.2) * radius, uniform(rng, 0.05, 0.2) * radius + 1
    cx, cy = direction(rng)
    moved = np.roll(distance, (round(reach * cy), round(reach * cx)), (0, 1))
    dark = smooth(0.5 - moved / (2 * soft)) * uniform(rng, 0.2, 0.6)
    scene.blend(place, np.zeros((3, 1, 1), np.float32), dark[part])


def add_object(scene: Scene, rng: Rng) -> bool:
    """Try a shape at a random place; False, with nothing drawn, where it or another would be mostly out of sight."""
    kind, pose = int(rng.integers(len(SHAPES))), any_pose(rng, scene.shape)
    window = pose.window(margin=0.45 * pose.radius + 2)  # room for the shadow
    u, v = pose.local(window)
    distance = SHAPES[kind](u, v, rng) * pose.radius  # (h, w)
    place, part = window.inside(scene.shape)
    solid = distance < 0
    seen, area = solid[part], int(solid.sum())
    sides = [np.count_nonzero(seen.any(axis)) for axis in (0, 1)]
    if min(sides) < MIN_SIDE or seen.sum() < MIN_VISIBLE * area:
        return False
    ground = scene.mean(place, seen)
    if not scene.claim(place, seen, len(scene.classes) + 1):
        return False
    scene.classes.append(kind)
    scene.areas.append(area)
    scene.visible.append(int(seen.sum()))
    if chance(rng, 0.6):
        shadow(scene, rng, place, part, distance=distance, radius=pose.radius)
    paint = coat(rng, ground, u, v, np.maximum(-distance, 0), kind)
    scene.blend(place, paint[(slice(None), *part)], np.clip(0.5 - distance, 0, 1)[part])
    return True


# ---------------------------------------------------------------- pictures


def soften(canvas: np.ndarray) -> None:
    """A light blur in place: weights 1 2 1 along rows and columns."""
    for view in (canvas, canvas.swapaxes(1, 2)):
        wide = np.concatenate([view[:, :1], view, view[:, -1:]], axis=1)
        view *= 0.5
        view += (wide[:, :-2] + wide[:, 2:]) * 0.25


def develop(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Blur, exposure and noise of a cheap camera; (3, H, W) float, used up, to (H, W, 3) uint8."""
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        soften(canvas)
    grain = int(rng.integers(0, 9))
    canvas *= uniform(rng, 0.8, 1.1)
    canvas += uniform(rng, -8, 12)
    canvas += rng.integers(-grain, grain + 1, canvas.shape[1:], dtype=np.int8)
    np.clip(np.rint(canvas, out=canvas), 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


class Picture(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 blue, green, red
    boxes: list[tuple[int, int, int, int, int]]  # class, left, top, right, bottom in pixels


def draw_picture(seed: int, split: str, index: int) -> Picture:
    """One picture of the data set and its boxes (of what can be seen): a function of its three arguments alone."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index])))
    shape = PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))]
    scene = Scene(background(rng, shape))
    for _ in range(int(rng.integers(0, 6))):
        CLUTTER[int(rng.integers(len(CLUTTER)))](scene, rng)
    if not chance(rng, EMPTY_SHARE):
        for _ in range(1 + int(MAX_OBJECTS * float(rng.random()))):
            any(add_object(scene, rng) for _ in range(8))
    for _ in range(int(rng.integers(0, 3))):
        scribble(scene, rng)  # in front
    return Picture(develop(scene.canvas, rng), scene.boxes())
