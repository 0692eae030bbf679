"""Command lines as YOLOv5 users know them, the README's table of differences, and the tests that it names."""

import ast
import re
from pathlib import Path

import pytest

from check import CheckOptions
from detect import DetectOptions
from export import ExportOptions
from utils.cli import SuggestingParser, add_flags
from utils.config import TrainOptions
from val import ValOptions

ROOT = Path(__file__).resolve().parents[1]

# The published command lines: flag, type, default. `type?` takes an optional value, `type+` several.
TRAIN = """
--weights             str    yolov5s.pt
--cfg                 str
--data                str    data/coco128.yaml
--hyp                 str    data/hyps/hyp.scratch-low.yaml
--epochs              int    100
--batch-size          int    16
--imgsz               int    640
--img                 int    640
--img-size            int    640
--rect                flag
--resume              str?   False
--nosave              flag
--noval               flag
--noautoanchor        flag
--noplots             flag
--evolve              int?   None
--evolve_population   str    data/hyps
--resume_evolve       str    None
--bucket              str
--cache               str?   None
--image-weights       flag
--device              str
--multi-scale         flag
--single-cls          flag
--optimizer           str    SGD
--sync-bn             flag
--workers             int    8
--project             str    runs/train
--name                str    exp
--exist-ok            flag
--quad                flag
--cos-lr              flag
--label-smoothing     float  0.0
--patience            int    100
--freeze              int+   0
--save-period         int    -1
--seed                int    0
--local_rank          int    -1
--entity              str    None
--upload_dataset      str?   False
--bbox_interval       int    -1
"""
VAL = """
--data                str    data/coco128.yaml
--weights             str+   yolov5s.pt
--batch-size          int    32
--imgsz               int    640
--img                 int    640
--img-size            int    640
--conf-thres          float  0.001
--iou-thres           float  0.6
--max-det             int    300
--task                str    val
--device              str
--workers             int    8
--single-cls          flag
--augment             flag
--verbose             flag
--save-txt            flag
--save-hybrid         flag
--save-conf           flag
--save-json           flag
--project             str    runs/val
--name                str    exp
--exist-ok            flag
--half                flag
--dnn                 flag
"""
DETECT = """
--weights             str+   yolov5s.pt
--source              str    data/images
--data                str    data/coco128.yaml
--imgsz               int+   640
--img                 int+   640
--img-size            int+   640
--conf-thres          float  0.25
--iou-thres           float  0.45
--max-det             int    1000
--device              str
--view-img            flag
--save-txt            flag
--save-format         int    0
--save-csv            flag
--save-conf           flag
--save-crop           flag
--nosave              flag
--classes             int+   None
--agnostic-nms        flag
--augment             flag
--update              flag
--project             str    runs/detect
--name                str    exp
--exist-ok            flag
--line-thickness      int    3
--hide-labels         flag
--hide-conf           flag
--half                flag
--dnn                 flag
--vid-stride          int    1
"""
EXPORT = """
--data                str    data/coco128.yaml
--weights             str+   yolov5s.pt
--imgsz               int+   [640, 640]
--img                 int+   [640, 640]
--img-size            int+   [640, 640]
--batch-size          int    1
--device              str    cpu
--half                flag
--inplace             flag
--keras               flag
--optimize            flag
--int8                flag
--per-tensor          flag
--dynamic             flag
--cache               str
--simplify            flag
--mlmodel             flag
--opset               int    17
--verbose             flag
--workspace           int    4
--nms                 flag
--agnostic-nms        flag
--topk-per-class      int    100
--topk-all            int    100
--iou-thres           float  0.45
--conf-thres          float  0.25
--include             str+   torchscript
"""
# Differences from the tables above, each with a row in the README's table.
DIFFERENT = {
    "train": {
        "--data": ("str", "data/shapes.yaml"),
        "--bucket": None,
        "--entity": None,
        "--upload_dataset": None,
        "--bbox_interval": None,
        "--imgsz": ("int+", "640"),
        "--img": ("int+", "640"),
        "--img-size": ("int+", "640"),
        "--evolve": ("int?", "0"),
        "--resume_evolve": ("str", ""),
    },
    "val": {
        "--data": ("str", "data/shapes.yaml"),
        "--conf-thres": ("str+", "0.001"),
        "--imgsz": ("int+", "640"),
        "--img": ("int+", "640"),
        "--img-size": ("int+", "640"),
    },
    "detect": {"--conf-thres": ("str+", "0.25")},
    "export": {"--conf-thres": ("single_threshold", "0.25")},
    "check": {},
}
TILES = {"--tile": ("int", "0"), "--tile-overlap": ("float", "0.2")}
ADDED = {
    "train": {
        "--save-minutes": ("float", "10.0"),
        "--amp": ("str", "auto"),
        "--compile": ("flag", ""),
        "--dry-run": ("flag", ""),
        "--nbs": ("int", "0"),
        "--threads": ("number_or_auto", "0"),
        "--evolve-workers": ("int", "0"),
        "--evolve-storage": ("str", ""),
        "--evolve-prune": ("flag", ""),
        "--evolve-fraction": ("float", "1.0"),
        "--evolve-timeout": ("float", "0.0"),
        "--score-only": ("flag", ""),
        "--fitness": ("str", "0.1,0.9"),
        "--recipe": ("str", "yolov5"),
        "--split": ("str", ""),
        "--time": ("float", "0.0"),
        "--min-delta": ("float", "0.0"),
        "--tile": ("int", "0"),
        "--tile-overlap": ("float", "0.2"),
        "--class-balance": ("float?", "0.0"),
        "--class-weights": ("str+", "[]"),
        "--log": ("str*", "[]"),
        "--loggers": ("str*", "[]"),
        "--log-project": ("str", ""),
        "--log-weights": ("flag", ""),
    },
    "val": {
        "--runtime": ("str", "pytorch"),
        **TILES,
        "--annotations": ("str", ""),
        "--json": ("flag", ""),
        "--split": ("str", ""),
    },
    "detect": {
        "--runtime": ("str", "pytorch"),
        "--json": ("flag", ""),
        "--save-labels": ("str", "None"),
        "--track": ("flag", ""),
        "--track-buffer": ("int", "30"),
        "--start": ("str", "None"),
        "--end": ("str", "None"),
        "--stream-timeout": ("float", "15.0"),
        "--stream-retries": ("int", "None"),
        "--segment-minutes": ("float", "0.0"),
        **TILES,
    },
    "export": {
        "--layout": ("str", "yolov5"),
        "--calibration-images": ("int", "300"),
        "--dynamo": ("flag", ""),
        "--no-verify": ("flag", ""),
        "--verify-images": ("int", "32"),
        "--json": ("flag", ""),
    },
    "check": {
        "--data": ("str", "data/shapes.yaml"),
        "--split": ("str", ""),
        "--imgsz": ("int+", "640"),
        "--img": ("int+", "640"),
        "--img-size": ("int+", "640"),
        "--source": ("str", ""),
        "--weights": ("str+", "[]"),
        "--cross": ("int", "0"),
        "--cross-epochs": ("int", "30"),
        "--rank": ("str", "None"),
        "--device": ("str", ""),
        "--json": ("flag", ""),
        "--project": ("str", "runs/check"),
        "--name": ("str", "exp"),
        "--exist-ok": ("flag", ""),
    },
}
PROGRAMS = {
    "train": (TRAIN, TrainOptions),
    "val": (VAL, ValOptions),
    "detect": (DETECT, DetectOptions),
    "export": (EXPORT, ExportOptions),
    "check": ("", CheckOptions),  # YOLOv5 has no such program
}


def published(table: str) -> dict[str, tuple[str, str]]:
    rows = (line.split() for line in table.strip().splitlines())
    return {row[0]: (row[1], " ".join(row[2:])) for row in rows}


def our_flags(options: type) -> dict[str, tuple[str, str]]:
    """Return the type and default of every flag, written as in the tables."""
    known = add_flags(SuggestingParser(), options)._option_string_actions
    found, defaults = {}, options()
    for name, action in known.items():
        if name in ("-h", "--help"):
            continue
        default = getattr(defaults, action.dest)
        if isinstance(default, list) and len(default) == 1:
            default = default[0]
        if action.nargs == 0:
            assert default is False, name
            found[name] = ("flag", "")
        else:
            found[name] = (action.type.__name__ + (action.nargs or ""), str(default))
    return found


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def read_differences() -> list[list[str]]:
    """Return the cells of each row of the README's table: YOLOv5, Anchorage, names of tests."""
    section = readme().split("## Deliberate differences from YOLOv5", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in rows]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_has_its_published_type_and_default(program):
    table, options = PROGRAMS[program]
    wanted = published(table) | ADDED[program]
    for flag, entry in DIFFERENT[program].items():
        assert flag in wanted and entry != wanted[flag], f"{flag} does not differ"
        wanted.pop(flag) if entry is None else wanted.update({flag: entry})
    assert our_flags(options) == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_that_differ_are_in_the_readmes_table(program):
    table, options = PROGRAMS[program]
    text = " ".join(cell for row in read_differences() for cell in row[:2])
    published_flags = published(table)
    for flag in {*DIFFERENT[program], *(set(our_flags(options)) - set(published_flags))}:
        assert f"`{flag}`" in text, f"README.md: no row for {program}.py {flag}"


def test_the_optional_values_of_flags():
    """Flags with an optional value have the published meaning without it."""
    known = add_flags(SuggestingParser(), TrainOptions)._option_string_actions
    assert {name: known[name].const for name in ("--resume", "--cache", "--evolve")} == {
        "--resume": True,
        "--cache": "ram",
        "--evolve": 300,
    }
    assert known["--cache"].choices == ["ram", "disk", "val", "off"]
    assert known["--optimizer"].choices == ["SGD", "Adam", "AdamW", "Muon"]
    tasks = add_flags(SuggestingParser(), ValOptions)._option_string_actions["--task"].choices
    assert tasks == ["train", "val", "test", "speed", "study", "compare"]


def test_every_row_names_tests_that_exist():
    functions = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    rows = read_differences()
    assert len(rows) > 40
    for row in rows:
        assert len(row) == 3, row
        named = re.findall(r"`(test_\w+)`", row[2])
        assert named, f"the row names no test: {row}"
        assert not set(named) - functions, f"no such test: {set(named) - functions}"
