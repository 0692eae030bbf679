"""Images of the "shapes" data set: eight classes of solid shapes on textured, cluttered backgrounds.

`draw_image(seed, split, index)` is the whole interface. Every solid shape that is drawn is labelled, and most of it is
visible. Lines, letters and smears are clutter, never objects. Pixels and boxes are the same on every machine.

Legend: H W rows and columns of an image, h w those of a window of it, x y pixels. A shape has coordinates u v, v down,
and fits the unit circle. A distance is signed: to an outline, negative inside.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from utils.datasets.shapes_textures import (
    TEXTURES,
    Color,
    Field,
    Rng,
    background,
    chance,
    color,
    direction,
    fractal_noise,
    mix,
    on_circle,
    pixels,
    random_color,
    smoothstep,
    uniform,
)

SPLITS = ("train", "val")
IMAGE_SIZES = ((480, 640), (480, 640), (427, 640), (640, 480), (640, 427), (360, 480), (480, 480), (384, 512))  # H, W
EXTENTS = ((0.04, 0.026, 0.05), (0.06, 0.05, 0.10), (0.40, 0.12, 0.27), (0.50, 0.27, 0.52))  # share, of short side
MAX_OBJECTS = 12
TILT = 0.07  # turns either way; shapes are roughly upright, as most things are
TYPICAL_SHARE = 0.9  # of a class's objects have roughly its typical hue, the others any
EMPTY_SHARE = 0.05  # of the images show only clutter
MIN_VISIBLE = 0.75  # of an object's area must be inside the image and not covered
MIN_SIDE = 6  # pixels, of a box
MIN_CONTRAST = 100  # distance in blue, green, red between an object and its background

Points = list[tuple[float, float]]


# ---------------------------------------------------------------- shapes: signed distances in their own units


def disc_distance(u: Field, v: Field, *, center: tuple[float, float] = (0, 0), radius: float = 1) -> Field:
    """Return the signed distance to a circle."""
    return np.sqrt((u - center[0]) ** 2 + (v - center[1]) ** 2) - radius


def box_distance(u: Field, v: Field, *, half_width: float, half_height: float) -> Field:
    """Return the signed distance to a rectangle around the origin."""
    over_u, over_v = np.abs(u) - half_width, np.abs(v) - half_height
    outside = np.sqrt(np.maximum(over_u, 0) ** 2 + np.maximum(over_v, 0) ** 2)
    return outside + np.minimum(np.maximum(over_u, over_v), 0)


def polygon_distance(u: Field, v: Field, points: Points) -> Field:
    """Return the signed distance to a simple polygon. The sign comes from counting the edges that a ray crosses."""
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
    """Return the distance to a square on its corner with a half disc on each of its two upper sides."""
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


# ---------------------------------------------------------------- the scene: painter's algorithm with owners of pixels


class Window(NamedTuple):
    """Rectangle of the scene in which something is drawn. It may extend beyond the image."""

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
        """Return its part inside an image of that shape, as rows and columns of the image, and of the window."""
        top, bottom = (min(max(v, 0), shape[0]) for v in (self.top, self.top + self.height))
        left, right = (min(max(v, 0), shape[1]) for v in (self.left, self.left + self.width))
        return (
            (slice(top, bottom), slice(left, right)),
            (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)),
        )


class Scene:
    """Image that is being drawn. It knows which object every pixel shows, and refuses anything that would hide one."""

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas  # (3, H, W) float32
        self.shape = canvas.shape[1:]
        self.owner = np.zeros(self.shape, np.int32)  # 0: no object; k: object k - 1
        self.classes: list[int] = []
        self.areas: list[int] = []  # in pixels, including parts outside the image
        self.visible: list[int] = []  # pixels

    def claim(self, place: tuple[slice, slice], solid: np.ndarray, owner: int) -> bool:
        """Give the pixels where `solid` is true to a new owner, unless that would hide most of an object."""
        taken = [int(n) for n in np.bincount(self.owner[place][solid], minlength=len(self.areas) + 1)[1:]]
        left = [seen - lost for seen, lost in zip(self.visible, taken, strict=True)]
        if any(lost and seen < MIN_VISIBLE * area for seen, lost, area in zip(left, taken, self.areas, strict=True)):
            return False
        self.visible = left
        self.owner[place][solid] = owner
        return True

    def blend(self, place: tuple[slice, slice], paint: np.ndarray, alpha: Field) -> None:
        target = self.canvas[(slice(None), *place)]
        target += (paint - target) * alpha

    def mean_color(self, place: tuple[slice, slice], solid: np.ndarray) -> Color:
        """Return the mean colour under a mask, summed in integers so that the order of addition does not matter."""
        total = self.canvas[(slice(None), *place)][:, solid].astype(np.int64).sum(axis=1)
        return (total / max(int(solid.sum()), 1)).astype(np.float32).reshape(3, 1, 1)

    def boxes(self) -> list[tuple[int, int, int, int, int]]:
        """Return (class, left, top, right, bottom) of the visible part of each object, in pixels, ends exclusive."""
        found = []
        for number, class_id in enumerate(self.classes, 1):
            columns, rows = (np.flatnonzero((self.owner == number).any(axis)) for axis in (0, 1))
            found.append((class_id, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        return found


# ---------------------------------------------------------------- clutter


def draw_line(
    scene: Scene,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    width: float,
    paint: Color,
    alpha: float = 1.0,
) -> None:
    """Draw a straight line with round ends, unless it would hide an object."""
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


def draw_scribble(scene: Scene, rng: Rng) -> None:
    """Draw a bent line, like a wire, a twig or a scratch."""
    H, W = scene.shape
    x, y = uniform(rng, 0, W), uniform(rng, 0, H)
    turn, step = uniform(rng, 0, 1), uniform(rng, 15, 90)
    width, paint, alpha = uniform(rng, 1, 5), random_color(rng), uniform(rng, 0.4, 1)
    for _ in range(int(rng.integers(2, 8))):
        turn += uniform(rng, -0.14, 0.14)
        dx, dy = on_circle(turn, step)
        draw_line(scene, (x, y), (x + dx, y + dy), width=width, paint=paint, alpha=alpha)
        x, y = x + dx, y + dy


def draw_letters(scene: Scene, rng: Rng) -> None:
    """Draw a row or two of made-up letters, each a bent line over a grid of 3 by 3 points."""
    size, (cx, cy), paint = uniform(rng, 9, 30), direction(rng, 0.15, 0.35), random_color(rng)
    x0, y0 = uniform(rng, 0, scene.shape[1] * 0.8), uniform(rng, 0, scene.shape[0])
    for row in range(int(rng.integers(1, 3))):
        for letter in range(int(rng.integers(4, 11))):
            nodes = [int(n) for n in rng.permutation(9)[: int(rng.integers(3, 5))]]
            corners = [((n % 3) * 0.28 + letter * 0.85, (n // 3) * 0.4 + row * 1.4) for n in nodes]
            points = [(x0 + size * (a * cx - b * cy), y0 + size * (a * cy + b * cx)) for a, b in corners]
            for start, end in pairwise(points):
                draw_line(scene, start, end, width=max(1.0, size * 0.11), paint=paint)


def draw_smear(scene: Scene, rng: Rng) -> None:
    """Draw a ragged stain, longer than wide, without a clear edge."""
    reach = uniform(rng, 15, 90)
    window = Window.around(uniform(rng, 0, scene.shape[1]), uniform(rng, 0, scene.shape[0]), reach, reach)
    place, part = window.inside(scene.shape)
    (cx, cy), flat = direction(rng), uniform(rng, 2, 4)
    x, y = pixels((window.height, window.width))
    u, v = x / reach - 1, y / reach - 1
    a, b = u * cx + v * cy, (v * cx - u * cy) * flat
    ragged = fractal_noise(rng, (window.height, window.width), max(reach * 0.35, 4)) * 1.1
    scene.blend(place, random_color(rng), (smoothstep(1 - (a * a + b * b) - ragged) * uniform(rng, 0.4, 0.9))[part])


CLUTTER = (draw_scribble, draw_scribble, draw_letters, draw_smear)


# ---------------------------------------------------------------- objects


class Pose(NamedTuple):
    """Position, size and orientation of a shape."""

    x: float
    y: float
    radius: float  # pixels
    turn: tuple[float, float]
    squeeze: float  # height over width, before turning

    def window(self, margin: float = 1) -> Window:
        """Return the window around the shape, with a margin in pixels."""
        reach = self.radius * max(self.squeeze, 1) + margin
        return Window.around(self.x, self.y, reach, reach)

    def local(self, window: Window) -> tuple[Field, Field]:
        """Return the coordinates u, v of a window's pixels."""
        x, y = window.pixels()
        dx, dy = (x - self.x) / self.radius, (y - self.y) / self.radius
        cx, cy = self.turn
        return dx * cx + dy * cy, (dy * cx - dx * cy) / self.squeeze


def random_pose(rng: Rng, shape: tuple[int, int]) -> Pose:
    """Draw a pose in an image of that shape."""
    _, low, high = EXTENTS[int(np.searchsorted(np.cumsum([e[0] for e in EXTENTS]), rng.random()))]
    radius = round(max(min(shape) * low * (high / low) ** float(rng.random()), 10) / 2, 3)
    upright = 0.25  # of a turn: the direction along which u grows
    turn = direction(rng, upright - TILT, upright + TILT)
    return Pose(uniform(rng, 0, shape[1]), uniform(rng, 0, shape[0]), radius, turn, uniform(rng, 0.87, 1.15))


def contrasting_color(rng: Rng, ground: Color, hue: tuple[float, float] = (0, 1)) -> Color:
    """Draw a colour with enough contrast to the ground, its hue in a range: the first of twelve tries, or the best."""
    tried = []
    for _ in range(12):
        paint = color(uniform(rng, *hue), uniform(rng, 0.15, 1), uniform(rng, 0.1, 1))
        tried.append((float(np.sqrt(((paint - ground) ** 2).astype(np.int64).sum())), len(tried), paint))
        if tried[-1][0] >= MIN_CONTRAST:
            break
    return max(tried)[2]


def random_hues(rng: Rng, class_id: int) -> tuple[float, float]:
    """Draw a range of hues for a shape of this class: around the class's own, or all hues."""
    middle = class_id / len(SHAPES)
    return (middle - 0.05, middle + 0.05) if chance(rng, TYPICAL_SHARE) else (0, 1)


def paint_surface(rng: Rng, ground: Color, u: Field, v: Field, depth: Field, class_id: int) -> np.ndarray:
    """Return paint (3, h, w) for a shape: a texture of two colours, light from one side, sometimes an outline.

    `depth` is the distance from the edge inwards, in pixels.
    """
    size = float(u.shape[1])
    first = contrasting_color(rng, ground, random_hues(rng, class_id))
    second = mix(first, contrasting_color(rng, ground), uniform(rng, 0.3, 0.8))
    texture = TEXTURES[int(rng.integers(len(TEXTURES) if size > 36 else 4))]
    paint = mix(first, second, texture(u, v, rng))
    cx, cy = direction(rng)
    paint = paint * (1 + (u * cx + v * cy) * uniform(rng, 0, 0.3))
    if chance(rng, 0.4):  # a rounded rim
        paint = paint * (0.65 + 0.35 * smoothstep(depth / (size * 0.09)))
    if chance(rng, 0.35) and size > 24:
        rim = color(uniform(rng, 0, 1), uniform(rng, 0, 0.6), float(rng.choice([0.08, 0.97])))
        paint = mix(rim, paint, np.clip(depth - max(1.0, size * uniform(rng, 0.01, 0.035)), 0, 1))
    return np.clip(paint, 0, 255)


def draw_shadow(
    scene: Scene, rng: Rng, place: tuple[slice, slice], part: tuple[slice, slice], *, distance: Field, radius: float
) -> None:
    """Darken the surroundings of an object: its outline moved by whole pixels, with a soft edge."""
    reach, soft = uniform(rng, 0, 0.2) * radius, uniform(rng, 0.05, 0.2) * radius + 1
    cx, cy = direction(rng)
    moved = np.roll(distance, (round(reach * cy), round(reach * cx)), (0, 1))
    dark = smoothstep(0.5 - moved / (2 * soft)) * uniform(rng, 0.2, 0.6)
    scene.blend(place, np.zeros((3, 1, 1), np.float32), dark[part])


def add_object(scene: Scene, rng: Rng) -> bool:
    """Draw a shape at a random place. Return False, with nothing drawn, if it or another would be mostly hidden."""
    class_id, pose = int(rng.integers(len(SHAPES))), random_pose(rng, scene.shape)
    window = pose.window(margin=0.45 * pose.radius + 2)  # room for the shadow
    u, v = pose.local(window)
    distance = SHAPES[class_id](u, v, rng) * pose.radius  # (h, w)
    place, part = window.inside(scene.shape)
    solid = distance < 0
    seen, area = solid[part], int(solid.sum())
    sides = [np.count_nonzero(seen.any(axis)) for axis in (0, 1)]
    if min(sides) < MIN_SIDE or seen.sum() < MIN_VISIBLE * area:
        return False
    ground = scene.mean_color(place, seen)
    if not scene.claim(place, seen, len(scene.classes) + 1):
        return False
    scene.classes.append(class_id)
    scene.areas.append(area)
    scene.visible.append(int(seen.sum()))
    if chance(rng, 0.6):
        draw_shadow(scene, rng, place, part, distance=distance, radius=pose.radius)
    paint = paint_surface(rng, ground, u, v, np.maximum(-distance, 0), class_id)
    scene.blend(place, paint[(slice(None), *part)], np.clip(0.5 - distance, 0, 1)[part])
    return True


# ---------------------------------------------------------------- images


def blur(canvas: np.ndarray) -> None:
    """Blur lightly in place: weights 1 2 1 along rows and columns."""
    for view in (canvas, canvas.swapaxes(1, 2)):
        wide = np.concatenate([view[:, :1], view, view[:, -1:]], axis=1)
        view *= 0.5
        view += (wide[:, :-2] + wide[:, 2:]) * 0.25


def render(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Turn a canvas (3, H, W) float, which is overwritten, into (H, W, 3) uint8 with the flaws of a cheap camera."""
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        blur(canvas)
    grain = int(rng.integers(0, 9))
    canvas *= uniform(rng, 0.8, 1.1)
    canvas += uniform(rng, -8, 12)
    canvas += rng.integers(-grain, grain + 1, canvas.shape[1:], dtype=np.int8)
    np.clip(np.rint(canvas, out=canvas), 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


class DrawnImage(NamedTuple):
    """Image of the data set and its labels."""

    image: np.ndarray  # (H, W, 3) uint8 blue, green, red
    boxes: list[tuple[int, int, int, int, int]]  # class, left, top, right, bottom in pixels


def draw_image(seed: int, split: str, index: int) -> DrawnImage:
    """Draw one image of the data set and the boxes of its visible objects. They depend on the arguments alone."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index])))
    shape = IMAGE_SIZES[int(rng.integers(len(IMAGE_SIZES)))]
    scene = Scene(background(rng, shape))
    for _ in range(int(rng.integers(0, 6))):
        CLUTTER[int(rng.integers(len(CLUTTER)))](scene, rng)
    if not chance(rng, EMPTY_SHARE):
        for _ in range(1 + int(MAX_OBJECTS * float(rng.random()))):
            any(add_object(scene, rng) for _ in range(8))
    for _ in range(int(rng.integers(0, 3))):
        draw_scribble(scene, rng)  # in front of the objects
    return DrawnImage(render(scene.canvas, rng), scene.boxes())
