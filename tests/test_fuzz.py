"""Fuzz test of every reader: a broken or hostile file gives a result or a one-line error, in limited time.

    python tests/test_fuzz.py 20000        this number of inputs per reader; prints the table of the README

An escape is an exception other than UserError, a message of several lines, or a result that breaks the reader's
promise. A program started, a connection or a file written is one too; an audit hook of the interpreter sees them. A
hang is an input that takes longer than SECONDS.
"""

import io
import json
import math
import operator
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it runs as a program too
sys.path.insert(1, str(Path(__file__).resolve().parent / "inference"))
sys.path.insert(1, str(Path(__file__).resolve().parent / "datasets"))

from drawn_set import DRAWN, coco_content, voc_text, write_images
from onnx_files import known_graph, make_model

from models.loading import load_model, read_weights
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, read_checkpoint, write_checkpoint
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.annotation_source import find_annotation_source
from utils.datasets.image_files import find_images
from utils.datasets.label_cache import LabelCache, is_consistent
from utils.datasets.label_file import parse_labels
from utils.datasets.labels import RowFormat, load_index
from utils.datasets.spec import read_dataset_yaml
from utils.errors import UserError, one_line
from utils.files import read_yaml
from utils.images.header import MAX_PIXELS, MIN_SIDE, image_shape
from utils.images.read import read_image, read_resized, resize_to
from utils.inference.onnx_file import read_onnx
from utils.pixel_format import RGB

INPUTS = 60  # per reader in the test suite
SECONDS = 30
MEMORY = 1 << 30  # bytes that the inputs of a reader may add to peak memory
FORBIDDEN = (
    "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.connect",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree", "ctypes.dlopen", "urllib.Request",
)  # fmt: skip


class Watch:
    """Audit hook that records what the interpreter does while a reader runs."""

    def __init__(self) -> None:
        self.active, self.seen = False, []
        sys.addaudithook(self._on_event)  # until the process ends: an audit hook cannot be removed

    def _on_event(self, event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and bool(set(args[1]) & set("wax+"))
        if self.active and (writes or event in FORBIDDEN):
            self.seen.append(f"{event}{args[:2]}")


class Hang(BaseException):
    """Timeout of a reader. No reader catches it."""


def on_alarm(*_: object) -> None:
    raise Hang


WATCH: list[Watch] = []


def attempt(read: Callable[[], object], counts: Counter) -> None:
    """Run a reader once and count the outcome. Raise AssertionError for an escape or a hang."""
    if not WATCH:
        WATCH.append(Watch())
    watch = WATCH[0]
    before = signal.signal(signal.SIGALRM, on_alarm)
    counts["inputs"] += 1
    signal.alarm(SECONDS)
    refusal = "none"
    watch.active = True
    try:
        read()
        counts["read"] += 1
    except UserError as error:
        counts["refused"] += 1
        refusal = str(error)
    except Hang:
        counts["hangs"] += 1
        raise AssertionError("a hang") from None
    except Exception as error:
        counts["escapes"] += 1
        raise AssertionError(f"escaped: {type(error).__name__}: {error}") from error
    finally:
        watch.active = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert one_line(refusal)
    if watch.seen:
        counts["escapes"] += 1
        raise AssertionError(f"did {watch.seen}")


# ---- inputs ----------------------------------------------------------------------------------------------------------

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [[-1, 1, "Conv", [8, 3, 2]], [[2], 1, "Detect", ["nc", "anchors"]]],
}
WORDS = [
    "a", "train", "names", "path", "nc", "backbone", "head", "lr0", "anchors", "download", "val", "x" * 300, "é",
    "\0", "/", "..", "Conv", "Detect", "nn.Upsample", "os.system", "nn.SiLU()", "__import__('os')", "~", "null", "<<",
    "=", "-1",
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 9), st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 10**30, 1e308, 5e-324])
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(WORDS), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.integers(0, 3)), inner, max_size=4),
    ),
    max_leaves=12,
)
YAML_PARTS = [
    "a: ", "b: ", "names: ", "train: ", "val: ", "- ", "\n", "\n  ", "\n- ", "[", "]", "{", "}", ", ", ": ", "? ",
    "&a ", "*a", "<<: ", "<<: *a", "!!int ", "!!float ", "!!bool ", "!!binary ", "!!set ", "!!omap ", "!!timestamp ",
    "!!python/object/apply:os.system ", "!!python/name:os.system", "!x ", "''", '"', "'", "|\n", ">-\n", "%TAG ! x\n",
    "%YAML 1.1\n", "---\n", "...\n", "#", "1", "1:59", "0x", "0b1", ".inf", ".nan", "1e999", "2001-01-01", "yes",
    "2001-12-14t21:59:43.10-99:99", "\t", "\u2028", "\ufeff", "\0", "\x7f", "é", "x", "~", "=", "`", "@", "1_0", "08",
]  # fmt: skip


def change_parts(content: dict, changes: list[tuple[list[int], object]]) -> dict:
    """Replace the values at the end of each route in `content`. Each number of a route chooses one branch."""
    content = yaml.safe_load(yaml.safe_dump(content))
    for route, value in changes:
        place = content
        for number in route:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = keys[number % len(keys)]
            if not isinstance(place[key], (dict, list)) or number == route[-1]:
                place[key] = value
                break
            place = place[key]
    return content


CHANGES = st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), PLAIN), min_size=1, max_size=3)
DATA = {
    "path": ".",
    "train": "a",
    "val": ["a"],
    "test": None,
    "nc": 2,
    "names": ["x", "y"],
    "download": "http://x/y.zip",
}


def dump(content: object) -> bytes:
    return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")


YAML = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(YAML_PARTS), max_size=40).map(lambda parts: "".join(parts).encode()),
    *(
        CHANGES.map(lambda changes, content=content: dump(change_parts(content, changes)))
        for content in (DATA, Hyperparameters().to_dict())
    ),
)
MODEL = st.one_of(YAML, CHANGES.map(lambda changes: dump(change_parts(TINY, changes))))
TOKENS = st.one_of(
    st.floats(0, 1).map(repr),
    NUMBERS.map(str),
    st.sampled_from(
        [
            "0",
            "1",
            ".5",
            "0.5",
            "1.0",
            "nan",
            "-inf",
            "1e400",
            "1_0",
            "٣",
            "0x1",
            "",
            "\ufeff",
            "\0",
            "é",
            ",",
            "x" * 50,
            "1e-400",
        ]
    ),
)
LABELS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.lists(TOKENS, max_size=12).map(" ".join), max_size=8).map(lambda rows: "\n".join(rows).encode()),
    st.lists(st.lists(TOKENS, min_size=5, max_size=5).map("\t".join), max_size=8).map(
        lambda rows: "\r\n".join(rows).encode()
    ),
)

NAMES = [
    "os system", "posix system", "builtins eval", "builtins getattr", "collections OrderedDict", "torch FloatStorage",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "models.yolo Model",
    "torch.nn.modules.conv Conv2d", "builtins set", "numpy.core.multiarray _reconstruct",
    "torch.storage _load_from_bytes", "torch Size", "pathlib PosixPath", "_codecs encode", "functools partial",
    "torch.serialization load", "torch.nn Module", "__main__ x",
]  # fmt: skip
PICKLE_PARTS = st.one_of(
    st.sampled_from(
        [
            b"(",
            b")",
            b"]",
            b"}",
            b"N",
            b"\x88",
            b"0",
            b"1",
            b"2",
            b"R",
            b"b",
            b"s",
            b"u",
            b"a",
            b"e",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b"q\0",
            b"h\0",
            b"Q",
            b"\x81",
            b"\x93",
            b"\x94",
            b"l",
            b"d",
            b"o",
            b"i",
            b"\x8f",
            b"\x90",
            b"X\3\0\0\0abc",
            b"X\xff\xff\xff\x7f",
            b"K\5",
            b"J\xff\xff\xff\xff",
            b"\x8a\2\0\1",
            b"G" + bytes(8),
            b"r\xff\xff\xff\x7f",
            b"\x96" + b"\xff" * 8,
            b"U\3abc",
            b"B\xff\xff\xff\xff",
            b"\x8c\7storage",
            b".",
        ]
    ),
    st.sampled_from(NAMES).map(lambda name: b"c" + name.replace(" ", "\n").encode() + b"\n"),
    st.binary(max_size=3),
)
PICKLES = st.lists(PICKLE_PARTS, max_size=40).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


def archive(data: bytes) -> bytes:
    """Return the zip archive that torch expects, with `data` as its pickle and one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in (("data.pkl", data), ("version", b"3\n"), ("data/0", bytes(64)), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    return out.getvalue()


def mutate(whole: bytes, seed: int, count: int) -> bytes:
    """Change, cut or double bytes in `count` places of a file, most of them in its pickle or its directory."""
    rng, data = random.Random(seed), bytearray(whole)
    for _ in range(count):
        place = (
            rng.randrange(len(data))
            if rng.random() < 0.3
            else rng.choice([rng.randrange(min(6000, len(data))), len(data) - 1 - rng.randrange(min(8000, len(data)))])
        )
        kind = rng.randrange(4)
        if kind < 2:
            data[place] = rng.randrange(256) if kind else data[place] ^ (1 << rng.randrange(8))
        elif kind == 2:
            del data[place : place + rng.randrange(1, 64)]
        else:
            data[place:place] = data[place : place + rng.randrange(1, 64)]
        if not data:
            break
    return bytes(data)


def valid_checkpoints(folder: Path) -> list[bytes]:
    """Make valid checkpoints: our full state, our weights, and a pickled model as YOLOv5 writes it, in both formats."""
    model = DetectionModel(TINY)
    write_checkpoint(
        folder / "a.pt",
        {
            "model": describe_model(model),
            "epoch": 3,
            "options": TrainOptions().to_dict(),
            "ema": {"state_dict": model.state_dict(), "updates": 3},
            "hyp": {"lr0": 0.1},
        },
    )
    write_checkpoint(folder / "b.pt", {"model": describe_model(model)}, kind="weights")
    torch.save({"model": model, "epoch": 1}, folder / "c.pt")
    torch.save({"model": model, "epoch": 1}, folder / "d.pt", _use_new_zipfile_serialization=False)
    return [(folder / f"{name}.pt").read_bytes() for name in "abcd"]


def valid_images() -> list[bytes]:
    """Encode a small image in every supported format."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    formats = [
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".png", []),
        (".bmp", []),
        (".tiff", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        (".pfm", []),
    ]
    return [cv2.imencode(suffix, pixels, options)[1].tobytes() for suffix, options in formats]


def valid_onnx() -> bytes:
    """Return a small ONNX detector with metadata, weights, and a graph in an attribute."""
    graph = known_graph({"output0": np.ones((1, 12, 7))})
    graph.node.append(helper.make_node("Constant", [], ["size"], value_ints=[1, 3, 2, 2]))
    graph.node.append(helper.make_node("Expand", ["images", "size"], ["large"]))
    graph.node.append(helper.make_node("If", ["images"], ["x"], then_branch=graph, else_branch=graph))
    return make_model(graph, {"stride": "32", "names": "{0: 'a', 1: 'b'}"}).SerializeToString()


IMAGE_HEADERS = [
    b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"BM",
    b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0", b"RIFF\x20\0\0\0WEBPVP8X", b"RIFF\x20\0\0\0WEBPVP8L",
    b"PF\n30 30\n-1\n", b"GIF89a", b"P6\n30 30\n255\n", b"#?RADIANCE\n", b"\x59\xa6\x6a\x95", b"\0\0\0\x0cjP  ", b"",
]  # fmt: skip


def cached_set(folder: Path) -> LabelCache:
    """Write a data set and its label cache. Return the cache."""
    for number, row in enumerate(("0 .5 .5 .2 .2\n", "1 .1 .1 .3 .1 .3 .4\nbad\n", "")):
        for kind, content in (("images", valid_images()[number]), ("labels", row.encode())):
            file = folder / "set" / kind / f"{number}.{'txt' if kind == 'labels' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    images = folder / "set" / "images"
    load_index(images, 2, progress=False)
    cache = LabelCache.of_split([images], find_images(images), settings=RowFormat(2)._asdict())
    return replace(cache, place=Path(shutil.move(cache.place, folder)))


# ---- readers ---------------------------------------------------------------------------------------------------------


def check_image(path: Path) -> None:
    """Read a header, and the pixels if there are few. Check that a partial decode gives the same rows."""
    try:
        height, width = image_shape(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    assert min(height, width) >= MIN_SIDE
    assert height * width <= MAX_PIXELS
    if height * width < 1 << 22:  # a damaged header may announce a large image, which takes long to decode
        whole = read_image(path)
        assert whole.shape[2:] == (3,)
        shape, rows = (-(-2 * height // 3), -(-2 * width // 3)), -(-height // 3)
        upper = read_resized(path, shape, smooth=False, rows=rows)[:rows]
        assert np.array_equal(upper, resize_to(whole, shape, smooth=False)[:rows])


def check_onnx(path: Path) -> None:
    """Read the outline of an ONNX file and check that what passes is the input and the output of a detector."""
    outline = read_onnx(path)
    assert len(outline.inputs) == 1 and len(outline.inputs[0].shape) == 4 and outline.outputs and outline.operators
    assert all(math.prod(side or 1 for side in tensor.shape or ()) <= 1 << 28 for tensor in outline.outputs)


def check_labels(data: bytes) -> None:
    """Parse label rows and check that all values are finite and inside the image."""
    parsed = parse_labels(data)
    assert len(parsed.boxes) == len(parsed.polygons)
    assert all(number >= 1 and reason for number, reason in parsed.problems)
    for kind, *box in parsed.boxes:
        assert kind >= 0
        assert kind == int(kind)
        assert all(0 <= value <= 1 + 1e-7 for value in box)
        assert min(box[2:]) > 0
    assert all(math.isfinite(value) for polygon in parsed.polygons for value in polygon)


def check_annotations(path: Path) -> None:
    """Read the annotations of images in the same folder, and check all boxes, classes and offsets."""
    source = find_annotation_source(path, path.parent)
    names, index = source.load(RGB, title="", progress=False, cache=False)
    rows = np.concatenate([index.labels, index.ignored])
    assert is_consistent(index) and ((rows[:, 0] >= 0) & (rows[:, 0] < max(1, len(names)))).all()
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1 + 1e-6)).all() and (rows[:, 3:] > 0).all()
    assert np.isfinite(index.points).all() and all(one_line(message) for message in index.messages)


def coco_inputs() -> st.SearchStrategy:
    """Return COCO files with some values replaced, and some with damaged bytes."""
    masks = {"size": [32, 64], "counts": "52203"}, {"size": [1e9, 2], "counts": [1]}
    numbers = None, True, -1, 0, 1, 7, 2.5, 1e308, 1 << 70, math.nan
    texts = "", "a.png", "../a.png", "\0", "\ud800"
    odd = st.sampled_from([*numbers, *texts, *masks, [], {}, [[]], [1, 2], [1, 2, 3, 4], [[1, 1, 9, 1, 9, 9]]])
    places = st.tuples(
        st.sampled_from(["images", "annotations", "categories"]), st.integers(0, 5), st.integers(0, 5), odd
    )

    def replaced(changes: list[tuple[str, int, int, object]]) -> bytes:
        content = coco_content()
        for key, number, position, value in changes:
            entry = content[key][number % len(content[key])]
            entry[[*entry, "iscrowd", "segmentation"][position % (len(entry) + 2)]] = value
        return json.dumps(content).encode()

    whole = json.dumps(coco_content()).encode()
    return st.lists(places, min_size=1, max_size=6).map(replaced) | st.builds(
        mutate, st.just(whole), st.integers(0, 2**31), st.integers(0, 6)
    )


def voc_inputs() -> st.SearchStrategy:
    """Return VOC files with texts and tags replaced, and some with damaged bytes."""
    whole = voc_text(DRAWN[0], extra="<object><name>x</name><polygon><x1>1</x1><y1>2</y1></polygon></object>")
    parts = sorted(set(re.findall(r"</?\w+>|[\w.]+", whole)))
    odd = st.sampled_from(
        ["", "-1", "nan", "1e400", "9" * 40, "<", "&a;", "<object>", "<!DOCTYPE a>", "\u0660", "../a.png"]
    )
    changes = st.lists(st.tuples(st.sampled_from(parts), odd), min_size=1, max_size=4)

    def replaced(pairs: list[tuple[str, str]]) -> bytes:
        text = whole
        for part, value in pairs:
            text = text.replace(part, value, 1)
        return text.encode()

    return changes.map(replaced) | st.builds(mutate, st.just(whole.encode()), st.integers(0, 2**31), st.integers(0, 6))


def cache_reader(cache: LabelCache) -> Callable[[Path], None]:
    """Return a function that reads a cache file and compares it with the undamaged one."""
    whole = cache.read()

    def read(path: Path) -> None:
        index = replace(cache, place=path).read()
        if index is None:
            raise UserError("the labels are read again")
        for name in ("paths", "shapes", "labels", "offsets", "points", "segment_offsets"):
            assert np.array_equal(getattr(index, name), getattr(whole, name)), name

    return read


def from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], Callable[[], object]]:
    """Return a function that writes an input to `path` and returns the call that reads it.

    The file is written before the reader is watched.
    """

    def prepare(data: bytes) -> Callable[[], object]:
        path.write_bytes(data)
        return partial(read, path)

    return prepare


def readers(folder: Path) -> dict[str, tuple[st.SearchStrategy, Callable[[bytes], Callable[[], object]]]]:
    """Map the name of each reader to its inputs and to a function that prepares the reading of one."""
    (folder / "a").mkdir()
    seed, changes = st.integers(0, 2**31), st.integers(0, 6)
    damaged = st.builds(mutate, st.sampled_from(valid_checkpoints(folder)), seed, st.integers(1, 6))
    hostile = st.one_of(PICKLES, PICKLES.map(archive), st.binary(max_size=200).map(lambda data: b"PK\x03\x04" + data))
    file, text, image = folder / "input.pt", folder / "input.yaml", folder / "input.png"
    cache = cached_set(folder)
    annotated = folder / "annotated"
    write_images(annotated)
    damaged_cache = st.builds(mutate, st.just(cache.place.read_bytes()), seed, changes)
    damaged_images = st.builds(mutate, st.sampled_from(valid_images()), seed, changes)
    images = damaged_images | st.builds(operator.add, st.sampled_from(IMAGE_HEADERS), st.binary(max_size=200))
    damaged_onnx = st.builds(mutate, st.just(valid_onnx()), seed, changes) | st.binary(max_size=200)
    return {
        "checkpoint, damaged": (damaged, from_file(file, read_weights)),
        "checkpoint, our reader": (damaged, from_file(file, read_checkpoint)),
        "checkpoint, hostile pickle": (hostile, from_file(file, read_weights)),
        "checkpoint to model": (damaged, from_file(file, load_model)),
        "ONNX file": (damaged_onnx, from_file(folder / "input.onnx", check_onnx)),
        "label file": (LABELS, lambda data: partial(check_labels, data)),
        "COCO JSON": (coco_inputs(), from_file(annotated / "x.json", check_annotations)),
        "Pascal VOC XML": (voc_inputs(), from_file(annotated / "a.xml", lambda path: check_annotations(path.parent))),
        "label cache": (damaged_cache, from_file(cache.place, cache_reader(cache))),
        "image header": (images, from_file(image, check_image)),
        "YAML": (YAML, from_file(text, read_yaml)),
        "hyperparameter YAML": (YAML, from_file(text, Hyperparameters.load)),
        "data set YAML": (YAML, from_file(text, lambda path: read_dataset_yaml(path).resolve([folder]))),
        "model YAML": (MODEL, from_file(text, DetectionModel)),
    }


NAMES_OF_READERS = (
    "checkpoint, damaged", "checkpoint, our reader", "checkpoint, hostile pickle", "checkpoint to model",
    "ONNX file", "label file", "COCO JSON", "Pascal VOC XML", "label cache", "image header", "YAML",
    "hyperparameter YAML", "data set YAML", "model YAML",
)  # fmt: skip


def fuzz(name: str, folder: Path, inputs: int, seed: int | None = None) -> Counter:
    """Try a number of inputs on a reader and count the outcomes.

    Raise AssertionError, with the smallest input, for an escape.
    """
    strategy, prepare = readers(folder)[name]
    counts = Counter()

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=seed is None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(data: bytes) -> None:
        attempt(prepare(data), counts)

    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    run()
    counts["MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    counts["seconds"] = int(time.monotonic() - started)
    assert counts["MiB"] << 20 < MEMORY, f"{counts['MiB']} MiB"
    return counts


@pytest.mark.parametrize("name", NAMES_OF_READERS)
def test_nothing_escapes(name, tmp_path, capsys):
    counts = fuzz(name, tmp_path, INPUTS)
    with capsys.disabled():
        print(
            f"\nfuzz {name}: {counts['inputs']} inputs, {counts['refused']} refused, {counts['read']} read, "
            f"{counts['escapes']} escapes, {counts['hangs']} hangs"
        )
    assert counts["inputs"] >= 0.5 * INPUTS and counts["escapes"] == counts["hangs"] == 0
    assert counts["refused"] + counts["read"] == counts["inputs"]


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda: print(1 / 0), "escaped: ZeroDivisionError"),
        (lambda: open("/dev/null", "w").close(), "did .*open"),
        (lambda: pickle.loads(b"cos\nsystem\n(S'true'\ntR."), "did .*os.system"),
        (lambda: time.sleep(60), "a hang"),
    ],
    ids=["error", "write", "program", "hang"],
)
def test_escapes_and_hangs_are_detected(read, message, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 1)
    try:
        with pytest.raises(AssertionError, match=message):
            attempt(read, Counter())
    finally:
        WATCH[0].seen.clear()


def main(inputs: int) -> None:
    print("| reader | inputs | refused in one line | read | escapes | hangs |\n|---|---|---|---|---|---|")
    for name in NAMES_OF_READERS:
        quiet = io.StringIO()  # for the warnings of readers
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(quiet), redirect_stderr(quiet):
            counts = fuzz(name, Path(folder), inputs, seed=0)
        print(
            f"| {name} | "
            + " | ".join(f"{counts[key]:,}" for key in ("inputs", "refused", "read", "escapes", "hangs"))
            + f" |  <!-- {counts['seconds']} s, {counts['MiB']} MiB -->",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
