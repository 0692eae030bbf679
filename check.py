"""Find what is wrong with a data set: `python check.py --data my.yaml`.

Files of the user are only read. Exit code 3 says that there are errors in the data.
"""

from utils.errors import silence_ctrl_c_during_imports

silence_ctrl_c_during_imports(__name__)

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.yolo import DetectionModel
from utils import console
from utils.checking.box_pairs import check_box_pairs
from utils.checking.boxes import check_boxes
from utils.checking.classes import check_classes
from utils.checking.console_table import findings_table, summary
from utils.checking.document import describe_check
from utils.checking.file_names import check_label_files, check_names
from utils.checking.findings import Finding, by_level
from utils.checking.fit import PlannedAnchors, check_fit
from utils.checking.image_copies import check_copies
from utils.checking.image_files import check_images
from utils.checking.polygons import check_polygons
from utils.checking.scan import Check, ScannedData, scan_dataset
from utils.checking.skipped import check_skipped
from utils.checking.split_balance import check_balance
from utils.cli import Arguments, Flags, flag, parse_flags, read_flags
from utils.datasets.locate import locate_dataset
from utils.download import fetch_typed
from utils.errors import UserError
from utils.errors import run as run_command
from utils.files import atomic_write, increment_path, require_writable
from utils.output.json_documents import to_line
from utils.process_state import unchanged_process

PROGRAM = {"prog": "check.py", "description": "Find what is wrong with a data set."}
ERRORS = 3  # exit code if the data has errors

# All checks, in the order of their findings.
CHECKS: tuple[Check, ...] = (
    check_skipped,
    check_images,
    check_names,
    check_label_files,
    check_boxes,
    check_box_pairs,
    check_classes,
    check_polygons,
    check_copies,
    check_balance,
)


@dataclass(frozen=True)
class CheckOptions:
    """Options of `check.py`: one field per flag."""

    data: str = flag("data/shapes.yaml", "data set YAML", group="data")
    imgsz: int = flag(
        640, "size of the training that is planned", names=["--imgsz", "--img", "--img-size"], group="data"
    )
    json: bool = flag(False, "print the findings as a JSON document on stdout, and messages on stderr", group="output")
    project: str = flag("runs/check", "results go to PROJECT/NAME", group="output")
    name: str = flag("exp", "results go to PROJECT/NAME; a number is added if it exists", group="output")
    exist_ok: bool = flag(False, "use an existing PROJECT/NAME", group="output")

    def __post_init__(self) -> None:
        if self.imgsz < 1:
            raise UserError(f"--imgsz {self.imgsz}: at least 1")


@dataclass(frozen=True)
class CheckResult:
    """Findings of a check, the worst first, and the folder that holds them."""

    findings: tuple[Finding, ...]
    save_dir: Path

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


def parse_opt() -> Flags:
    """Return all flags of the command line, for `main`."""
    return parse_flags(CheckOptions, **PROGRAM)


def parse_args(argv: Arguments = None) -> CheckOptions:
    """Return the options."""
    return CheckOptions(**fetch_typed(read_flags(CheckOptions, argv, **PROGRAM)))


def find_all(data: ScannedData) -> list[Finding]:
    """Return the findings of all checks, the worst first."""
    findings = [finding for check in CHECKS for finding in check(data)]
    return by_level([*findings, *check_fit(data, planned_anchors())])


def planned_anchors() -> PlannedAnchors:
    """Return the anchors that a training without `--cfg` and `--weights` starts from."""
    model = DetectionModel("yolov5s.yaml")
    strides = model.stride.cpu()
    return PlannedAnchors((model.head.anchors * strides[:, None, None]).detach().cpu().numpy(), strides.numpy())


def check_dataset(options: CheckOptions) -> CheckResult:
    """Check as the options say. Print the findings and write them into a new folder."""
    require_writable(options.project)
    spec = locate_dataset(options.data)
    data = scan_dataset(spec, options.imgsz)
    findings = find_all(data)
    folder = increment_path(Path(options.project) / options.name, options.exist_ok)
    document = describe_check(data, findings, typed=options.data, save_dir=folder)
    write_json(folder / "findings.json", document)
    console.result(*findings_table(findings), f"\n{spec.file}: {summary(findings)}", f"Results saved to {folder}")
    if options.json:
        console.data(to_line(document))
    return CheckResult(tuple(findings), folder)


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a document with an indent, for people."""
    with atomic_write(file) as stream:
        stream.write(json.dumps(document, indent=1, allow_nan=False).encode())


def run(data: str | Path | None = None, **flags: Any) -> CheckResult:
    """Check with flags as keywords (`imgsz=320`), from a program. Raises UserError, also for mistakes in the keywords.

    Errors in the data are in the result; they raise nothing.
    """
    with unchanged_process():
        return check_dataset(parse_args({"data": data, **flags}))


def main(argv: Arguments = None) -> CheckResult:
    """Check as the command line `argv` says. Raises SystemExit with code 3 if the data has errors."""
    result = check_dataset(parse_args(argv))
    if result.errors:
        raise SystemExit(ERRORS)
    return result


if __name__ == "__main__":
    run_command(main, closes_files=True)
