"""Hostile and broken files: no code of theirs runs, no reader hangs, memory is bounded, each gets a one-line message.

Each reader is called in a process of its own, which may take a minute and 1 GiB of additional memory.
"""

import ast
import copy
import os
import pickle
import resource
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from onnx_files import known_graph, make_model, save
from tiny_training import train_flags

import train
from models.loading import load_model, read_weights
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, read_checkpoint, write_checkpoint
from utils.config import Hyperparameters
from utils.datasets.labels import load_index
from utils.datasets.locate import locate_dataset
from utils.datasets.spec import read_dataset_yaml
from utils.errors import UserError, one_line
from utils.files import read_yaml
from utils.images.read import read_image
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

SPARE_MEMORY = 1 << 30
SECONDS = 60


def run_contained(function: Callable[..., object], *args: object) -> str:
    """Call `function` under the limits. Return the message of its UserError, or another outcome in words."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_MEMORY,) * 2)
        try:
            text = f"went through: {str(function(*args))[:100]}"
        except UserError as error:
            text = str(error)
        except BaseException as error:
            text = f"ESCAPED: {type(error).__name__}: {error}"
        os.write(writer, text.encode(errors="replace")[:8000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return text if status == 0 else f"ENDED by {status}"


@pytest.fixture
def canary(tmp_path):
    """Return a file that an attack would create. The test fails if it exists afterwards."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def description(tiny_cfg) -> dict:
    return describe_model(DetectionModel(tiny_cfg, num_classes=2))


# ---- checkpoints of our own kind


class Call:
    """Object that calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("place", [("model", "yaml"), ("model", "state_dict"), ("options",), ("optimizer",), ("hyp",)])
def test_a_call_in_any_part_of_a_checkpoint_is_not_made(tmp_path, canary, description, place):
    content = {"anchorage": 1, "kind": "train", "model": dict(description), "options": {}, "optimizer": {}, "hyp": {}}
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = {"x": Call(os.system, f"touch '{canary}'")}
    torch.save(content, tmp_path / "evil.pt")
    for read in (read_checkpoint, read_weights, load_model, lambda file: train.main(["--resume", str(file)])):
        message = run_contained(read, tmp_path / "evil.pt")
        assert "evil.pt" in message and not message.startswith(("went", "ESCAPED", "ENDED")), message


def test_a_small_file_that_expands_is_refused(tmp_path, description):
    """Compressed records, a tensor that repeats one number, lists nested in lists."""
    write_checkpoint(tmp_path / "good.pt", {"model": description}, kind="weights")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("archive/data/bomb", bytes(400 << 20))
    state = dict(description["state_dict"])
    name = next(iter(state))
    state[name] = torch.zeros(1, dtype=torch.float16).expand(1 << 40)
    write_checkpoint(tmp_path / "wide.pt", {"model": {**description, "state_dict": state}}, kind="weights")
    nested = []
    for _ in range(80):
        nested = [nested, nested]
    write_checkpoint(tmp_path / "nested.pt", {"model": {**description, "yaml": {**description["yaml"], "x": nested}}})
    for file, reason in (
        ("packed.pt", "not a whole checkpoint|is compressed"),
        ("wide.pt", "larger than what is stored"),
        ("nested.pt", "unpacks to many times its size"),
    ):
        for read in (read_checkpoint, read_weights):
            message = run_contained(read, tmp_path / file)
            assert any(part in message for part in reason.split("|")) and file in message, message


@pytest.mark.parametrize(
    "change",
    [
        {"width_multiple": 1e6},
        {"depth_multiple": 1e9},
        {"nc": 99999},
        {"width_multiple": 10.0**300},
        {"backbone": [[-1, 10**9, "Conv", [64, 3]]]},
        {"backbone": [[-1, 1, "Conv", [10**9, 3]]]},
        {"backbone": [[-1, 1, "nn.Upsample", [None, 10**6, "nearest"]]]},
        {"head": []},
        {"anchors": 10**9},
        {"backbone": [[-1, 1, "os.system", ["touch canary"]]]},
        {"activation": "__import__('os').system('true')"},
        {"backbone": "x"},
        {"ch": 10**9},
        {"depth_multiple": float("nan")},
        {"backbone": [[-1, 1, "Conv", [64, 10**5]]]},
    ],
    ids=str,
)
def test_a_giant_model_is_refused_before_it_is_built(tmp_path, description, tiny_cfg, change):
    giant = {**copy.deepcopy(description["yaml"]), **change}
    write_checkpoint(tmp_path / "giant.pt", {"model": {**description, "yaml": giant}}, kind="weights")
    message = run_contained(lambda: load_model(tmp_path / "giant.pt"))
    assert "giant.pt: " in message and not message.startswith(("went", "ESCAPED", "ENDED")), message
    (tmp_path / "giant.yaml").write_text(yaml.safe_dump(giant))
    message = run_contained(lambda: DetectionModel(tmp_path / "giant.yaml"))
    assert "giant.yaml" in message or ("went through" in message and change == {"nc": 99999}), message


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "x"},
        {"step": 1.5},
        {"iteration": None},
        {"means": "x", "step": 1},
        {"means": [None] * 3},
        {"optimizer": []},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}},
        {"ema": None},
        {"rng": {"cpu": torch.zeros(3), "cuda": []}},
        {"guard": 5},
        {"options": {"epochs": "many"}},
        {"options": []},
        {"options": {"freeze": ["x"]}},
        {"options": {"batch_size": 10**30}},
        {"hyp": {"lr0": 10**400}},
        {"model": {"yaml": {}}},
        {"kind": 5},
        {"best_fitness": []},
        {"surroundings": 7},
        {"class_maps": None},
    ],
    ids=lambda change: str(change)[:50],
)
def test_a_state_with_a_wrong_part_is_refused_or_resumed(tiny_data, tiny_cfg, tmp_path, finished, change):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    content = read_checkpoint(run / "weights" / "last.pt")
    for key, value in change.items():
        content[key] = {**content[key], **value} if key in ("options", "hyp") and isinstance(value, dict) else value
    kind = content.pop("kind")
    write_checkpoint(run / "weights" / "last.pt", content, kind=kind)
    message = run_contained(lambda: train.main(["--resume", str(run), "--epochs", "2", "--image-weights"]))
    assert not message.startswith(("ESCAPED", "ENDED")), message


@pytest.fixture(scope="module")
def finished(tiny_data, tiny_cfg, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train.main(train_flags(tiny_data, tiny_cfg, folder, "--batch-size", "24", "--noplots", epochs=1))
    return folder / "run"


# ---- YAML


def bomb(levels: int, merge: bool = False) -> str:
    """Return a YAML in which each level names the previous one nine times: 9**levels values."""
    lines = ["a0: &a0 {k: v}" if merge else "a0: &a0 [x, x]"]
    for number in range(levels):
        names = ", ".join([f"*a{number}"] * 9)
        lines.append(f"a{number + 1}: &a{number + 1} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, reason",
    [
        (bomb(30), "aliases that repeat each other"),
        (bomb(30, merge=True), "aliases that repeat each other"),
        ("a: &a [*a]", "aliases that repeat each other"),
        ("a: " + "1" + ":59" * 100_000, "a number of 300001 letters"),
        ("a: " + "9" * 500_000, "a number of 500000 letters"),
        ("a: " + "[" * 50_000, "recursion"),
        ("a: x\n" * 300_000, "is too large"),
        ("a: !!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("!!python/object/new:tuple [[1]]", "could not determine a constructor"),
        ("a: !!int ''", "index out of range"),
        ("a: !!bool x", ": "),
        ("a: 2001-99-99", "month must be in"),
        ("? [1, 2]\n: x\n? {a: 1}\n: y", "unhashable"),
        ("\x00\x01\x02", "special characters"),
        ("%YAML 9.9\n--- x", "version"),
    ],
    ids=lambda value: value[:20],
)
def test_a_hostile_yaml_is_one_line(tmp_path, text, reason, canary):
    file = tmp_path / "evil.yaml"
    file.write_bytes(text.encode())
    message = run_contained(lambda: read_yaml(file))
    assert "evil.yaml" in message and reason in message.lower() and "\n" not in message, message


@pytest.mark.parametrize(
    "change",
    [
        {"train": 5},
        {"train": [1]},
        {"train": {"a": "b"}},
        {"train": "x" * 5000},
        {"train": "a\0b"},
        {"train": "\n"},
        {"path": ["a"]},
        {"path": 7},
        {"path": "x" * 5000},
        {"path": "loop/loop"},
        {"names": "cat"},
        {"names": 3},
        {"names": [["a"]]},
        {"names": {1: "a"}},
        {"names": {"x": "a"}},
        {"names": [None]},
        {"nc": [1]},
        {"val": None},
        {"names": []},
        {"download": {"a": 1}},
        {"download": [5]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_data_set_yaml_with_wrong_types_is_one_line(tmp_path, change):
    (tmp_path / "loop").symlink_to("loop")
    content = {"train": "a", "val": "b", "names": ["x"], **change}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(content))
    message = run_contained(lambda: read_dataset_yaml(file).resolve([tmp_path]))
    assert "data.yaml" in message and not message.startswith(("went", "ESCAPED", "ENDED")), message


@pytest.mark.parametrize(
    "code", ["bash get.sh", "import os; os.system('touch canary')", "file:///etc/passwd", "get.sh", "|"]
)
def test_code_in_download_is_never_run(tmp_path, canary, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "a", "val": "b", "names": ["x"], "download": code}))
    message = run_contained(lambda: locate_dataset(str(file)))
    assert "code is never run" in message, message


@pytest.mark.parametrize(
    "value", ["x", None, True, [1], {"a": 1}, 10**400, float("nan"), float("inf"), -1, "1e5"], ids=str
)
def test_a_hyperparameter_of_a_wrong_type_is_named(tmp_path, value):
    file = tmp_path / "hyp.yaml"
    file.write_text(yaml.safe_dump({"lr0": value}))
    message = run_contained(lambda: Hyperparameters.load(file))
    assert f"{file}" in message and not message.startswith(("went", "ESCAPED", "ENDED")), message


# ---- exported models


@pytest.mark.parametrize(
    "claim", [{"dims": [1 << 40]}, {"dims": [1 << 20, 1 << 20], "raw_data": bytes(8)}, {}], ids=str
)
def test_an_exported_file_allocates_nothing_of_what_it_claims(tmp_path, canary, claim):
    graph = known_graph({"output0": np.ones((1, 12, 7))})
    if claim:
        graph.initializer.append(TensorProto(name="large", data_type=TensorProto.FLOAT, **claim))
    else:
        graph.node.append(helper.make_node("Constant", [], ["size"], value_ints=[1 << 20, 1 << 20]))
        graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))
    names = f"__import__('os').system('touch {canary}')"
    file = save(tmp_path / "a.onnx", make_model(graph, {"names": names}))
    message = run_contained(lambda: open_exported(file, RuntimeSettings()))
    assert "a.onnx: " in message and not message.startswith(("went", "ESCAPED", "ENDED")), message


# ---- labels and images


def test_a_bad_label_file_loses_only_its_own_rows(tiny_data, tmp_path):
    folder = Path(shutil.copytree(tiny_data.parent, tmp_path / "data"))
    labels = folder / "labels" / "train"
    good = "0 0.5 0.5 0.2 0.2"
    contents = {
        0: b"0 " + b"0.5 " * 2_500_000 + b"\n" + good.encode(),  # a line of 10 MB
        1: b"x" * 10_000_000,
        2: bytes(range(256)) * 4000,
        3: f"\ufeff{good}\r\n1 0.1 0.1 0.1 0.1\r".encode(),
        4: "\u0660 \u0660.\u0665 0.5 0.1 0.1\n".encode() + good.encode(),  # Arabic digits
        6: b"0 1e400 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n0 1_0 0.5 0.1 0.1\n" + good.encode(),
        7: (good + "\n0 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.5 0.5\n").encode(),
        8: b"0 0.5 0.5 0.1 0.1 \n" * 3_600_000,  # over 64 MiB
    }
    for number, content in contents.items():
        (labels / f"{number}.txt").write_bytes(content)
    for number, make in {9: os.mkfifo, 10: lambda file: file.symlink_to("/dev/zero")}.items():
        (labels / f"{number}.txt").unlink()
        make(labels / f"{number}.txt")
        contents[number] = None
    counts = run_contained(
        lambda: {
            Path(path).stem: len(index.boxes(i))
            for index in [load_index(folder / "images" / "train", 2, progress=False)]
            for i, path in enumerate(index.paths)
            if int(Path(path).stem) in contents
        }
    )
    # The images of 8, 9 and 10 are skipped: they are no backgrounds only because their labels cannot be read.
    expected = {"0": 1, "1": 0, "2": 0, "3": 2, "4": 1, "6": 1, "7": 2}
    assert ast.literal_eval(counts.removeprefix("went through: ")) == expected


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """Make a PNG file whose header announces width x height pixels but whose data is short. `more` is another chunk."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(more, b"II*\0\x08" + bytes(9)) if more else b"")
    return head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    """Make a run-length-encoded BMP file that ends at once, which leaves all its pixels black."""
    header = struct.pack("<IHHIIiiHHIIiiII", 1080, 0, 0, 1078, 40, width, height, 1, 8, 1, 2, 0, 0, 256, 0)
    return b"BM" + header + bytes(1024) + b"\0\1"


def tiff(width: int, height: int) -> bytes:
    """Make a deflated TIFF file of one strip that announces width x height pixels."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8 + 2 + 12 * 8 + 4),
        (277, 3, 1),
        (279, 4, 100),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4) + bytes(100)


def save_image(path: Path, mode: str, **options) -> None:
    from PIL import Image  # installed with matplotlib

    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20)
    elif mode != "RGB":
        image = image.convert(mode)
    frames = {"save_all": True, "append_images": [image] * 2} if options.pop("animated", False) else {}
    image.save(path, **frames, **options)


STRANGE_NAMES = [
    "with space.png", "quo'te\".png", "emoji 🐟.png", "new\nline.png", "-dash.png", "%s{x}.png", "ünï.png",
    "semi;colon&.png", "back\\slash.png",
]  # fmt: skip


@pytest.fixture
def zoo(tiny_data, tmp_path) -> Path:
    """Add unusual, damaged and hostile image files to a copy of the tiny data."""
    folder = Path(shutil.copytree(tiny_data.parent, tmp_path / "zoo"))
    place = folder / "images" / "train"
    save_image(place / "cmyk.jpg", "CMYK")
    save_image(place / "sixteen.png", "I;16")
    save_image(place / "palette.png", "P")
    save_image(place / "grey.png", "L")
    save_image(place / "alpha.png", "RGBA")
    save_image(place / "bit.png", "1")
    save_image(place / "animated.webp", "RGB", animated=True)
    save_image(place / "animated.png", "RGB", animated=True)
    save_image(place / "pages.tiff", "RGB", animated=True)
    save_image(place / "progressive.jpg", "RGB", progressive=True)
    save_image(place / "jpeg.png", "RGB", format="JPEG")  # a wrong suffix
    shutil.copy(place / "grey.png", place / "UPPER.PNG")
    for name in STRANGE_NAMES:
        save_image(place / name, "RGB", format="PNG")
    (place / "loop").symlink_to(place)
    (place / "self.png").symlink_to("self.png")
    (place / "nowhere.png").symlink_to("/nowhere/at/all.png")
    (place / "folder.png").mkdir()
    for name, content in {
        "empty.png": b"",
        "text.jpg": b"<html>",
        "bomb.png": png(30_000, 30_000),
        "one.png": png(1, 1),
        "thin.png": png(30_000, 1),
        "bomb.tiff": tiff(60_000, 60_000),
        "zip.png": b"PK\x03\x04" * 9,
        "pickle.jpg": pickle.dumps([1]),
        "negative.png": png(2**32 - 1, 2**32 - 1),
        "turned.png": png(30_000, 30_000, b"eXIf"),
        "bomb.bmp": bmp(20_000, 20_000),
        "radiance.png": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 20000 +X 20000\n",
    }.items():
        (place / name).write_bytes(content)
    os.mkfifo(place / "pipe.png")
    (place / "zeros.png").symlink_to("/dev/zero")
    with open(place / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(1 << 33)
    whole = (place / "0.png").read_bytes()
    (place / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


READABLE = {
    "cmyk.jpg", "sixteen.png", "palette.png", "grey.png", "alpha.png", "bit.png", "animated.webp", "animated.png",
    "pages.tiff", "progressive.jpg", "jpeg.png", "UPPER.PNG", *STRANGE_NAMES,
}  # fmt: skip
BROKEN = {
    "self.png", "nowhere.png", "empty.png", "text.jpg", "bomb.png", "one.png", "thin.png", "bomb.tiff", "zip.png",
    "pickle.jpg", "negative.png", "cut.png", "turned.png", "bomb.bmp", "radiance.png", "pipe.png", "zeros.png",
    "sparse.jpg",
}  # fmt: skip


def test_each_bad_image_is_skipped_with_one_line(zoo, capsys):
    index = load_index(zoo / "images" / "train", 2)
    printed = capsys.readouterr().out
    names = {Path(path).name for path in index.paths}
    assert names >= READABLE and not names & BROKEN and {f"{number}.png" for number in range(24)} <= names
    for name in BROKEN:
        assert printed.count(f"{name}: image skipped: ") == 1, name
    for path, shape in zip(index.paths, index.shapes.tolist()):
        image = read_image(path)
        assert list(image.shape) == [*shape, 3] and image.dtype == np.uint8, path


def test_the_memory_for_a_bomb_is_never_allocated(zoo):
    message = run_contained(lambda: len(load_index(zoo / "images" / "train", 2, progress=False, cache=False)))
    assert message.startswith("went through"), message


def test_the_zoo_trains(zoo, tiny_cfg, tmp_path, capsys):
    train.main(
        [
            "--data",
            str(zoo / "tiny.yaml"),
            "--cfg",
            str(tiny_cfg),
            "--imgsz",
            "64",
            "--batch-size",
            "16",
            "--epochs",
            "1",
            "--workers",
            "2",
            "--device",
            "cpu",
            "--amp",
            "off",
            "--project",
            str(tmp_path / "runs"),
        ]
    )
    printed = capsys.readouterr().out
    assert "new line.png" not in printed and "bomb.png: image skipped: the image is 30000x30000 pixels" in printed
    assert (tmp_path / "runs" / "exp" / "train_batch0.jpg").stat().st_size > 0
    assert cv2.imread(str(tmp_path / "runs" / "exp" / "train_batch0.jpg")) is not None


def test_messages_are_one_line_for_any_file_name():
    assert one_line("a\nb\r\x1b[2Jc\u2028d") == "a b  [2Jc d" and len(one_line("x" * 10**6)) < 1100
