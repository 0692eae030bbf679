"""ncnn folders of a small network, written by pnnx and run by ncnn."""

import dataclasses
import random
import re
import subprocess
import sys

import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import check_request, write_format
from utils.files import ROOT
from utils.formats import FORMATS
from utils.inference import trial_run
from utils.inference.ncnn_file import check_ncnn
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

REQUEST = ExportRequest((64, 96))
NUMBER = re.compile(r"(?<=[ =,])-?\d[\d.]*")
VALUES = ("0", "1", "2", "3", "7", "64", "1000", "1000000", "-1", "-233", "1.5")
# Runs each model in a process of its own and prints how it ended: an exit code, or minus a signal.
RUN_EACH = """
import os, signal, sys
from utils.inference.trial_run import run_ncnn
for file in sys.argv[1:]:
    if not (child := os.fork()):
        signal.alarm(30)
        try:
            run_ncnn(file, "False", "1", "64", "96")
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    check_request([FORMATS["ncnn"]], REQUEST, network)
    return write_format(FORMATS["ncnn"], network, tmp_path_factory.mktemp("ncnn") / "best.pt", REQUEST)


def test_outputs_equal_those_of_pytorch(network, folder):
    images = image(2, 96)[:, :, :64]
    model = open_exported(folder, RuntimeSettings())
    with torch.inference_mode():
        expected = network(images)[0]
    assert model.names == network.names and model.fixed_shape == (64, 96)
    assert float((model(images)[0] - expected).abs().max()) < 1e-3  # two images, one a call
    half = open_exported(folder / "model.ncnn.param", RuntimeSettings(half=True))
    assert 1e-3 < float((half(images)[0] - expected).abs().max()) < 20  # pixels


def test_the_folder_has_the_names_that_programs_expect(folder):
    assert folder.name == "best_ncnn_model"
    assert sorted(file.name for file in folder.iterdir()) == ["metadata.yaml", "model.ncnn.bin", "model.ncnn.param"]


@pytest.mark.parametrize(
    "properties, word",
    [
        ({"int8": True}, "--int8"),
        ({"dynamic": True}, "--dynamic"),
        ({"batch": 2}, "--batch-size 2"),
        ({"nms": NmsInside(0.25, 0.45, 100, 100, False), "layout": "nms"}, "--nms"),
    ],
)
def test_what_ncnn_cannot_hold(network, properties, word):
    with pytest.raises(UserError, match=f"--include ncnn {word}: "):
        check_request([FORMATS["ncnn"]], dataclasses.replace(REQUEST, **properties), network)


def test_broken_folders_are_one_line(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.ncnn.param").write_text("7767517\n1 1\nUnknownLayer a 0 1 out0\n")
    with pytest.raises(UserError, match="line 3: the layer 'UnknownLayer' is not one of detectors"):
        open_exported(tmp_path / "model.ncnn.param", RuntimeSettings())
    (tmp_path / "metadata.yaml").unlink()
    with pytest.raises(UserError, match="its metadata lacks imgsz"):
        open_exported(tmp_path / "model.ncnn.param", RuntimeSettings())


def damaged_copy(folder, target, old, new):
    """Copy a model into the folder `target`, with the layers changed."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    layers = (target / "model.ncnn.param").read_text()
    assert old in layers
    (target / "model.ncnn.param").write_text(layers.replace(old, new, 1))
    return target / "model.ncnn.param"


def test_a_file_that_crashes_the_library_is_one_line(folder, tmp_path, monkeypatch):
    """The check of the file does not see that these rows have another number of values."""
    graph = damaged_copy(folder, tmp_path / "a_ncnn_model", "0=8 1=192", "0=1000000 1=192")
    with pytest.raises(UserError, match=r"ncnn crashes on a blank image \(.+\): the file is damaged, export it again"):
        open_exported(graph.parent, RuntimeSettings(threads=1))
    monkeypatch.setattr(trial_run, "DEADLINE", 0.01)
    with pytest.raises(UserError, match="ncnn does not end within 0 s on a blank image"):
        open_exported(folder, RuntimeSettings(threads=1))


def test_random_damage_that_passes_the_check_ends(folder, tmp_path):
    """The library runs damaged models or crashes in the process of their trial, but it does not hang."""
    draw, passed = random.Random(0), []
    layers, graph = (folder / "model.ncnn.param").read_text(), tmp_path / "0.param"
    places = list(NUMBER.finditer(layers))
    while len(passed) < 24:
        place = draw.choice(places)
        graph.write_text(layers[: place.start()] + draw.choice(VALUES) + layers[place.end() :])
        graph.with_suffix(".bin").write_bytes((folder / "model.ncnn.bin").read_bytes())
        try:
            check_ncnn(graph, graph.with_suffix(".bin"))
        except UserError:
            continue
        passed.append(str(graph))
        graph = tmp_path / f"{len(passed)}.param"
    command = [sys.executable, "-c", RUN_EACH, *passed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    codes = [int(line) for line in done.stdout.splitlines()]
    assert len(codes) == len(passed) and -14 not in codes, (codes, done.stderr)  # 14 is the alarm
    assert codes.count(0) > 5  # names, and values that were the same
