"""Files of a validation: drawings, and the detections as text or as a COCO results file."""

from collections.abc import Sequence
from pathlib import Path

from utils import console
from utils.inference.observer import EvaluationObserver
from utils.inference.reporting import DetectionFiles, Drawings
from utils.inference.subject import Subject
from utils.metrics import Metrics
from utils.output.prediction_files import CocoWriter, TextWriter
from utils.pending_files import require_written


class ValidationFiles:
    """Files in the folder of a validation. `observers` fill them, `finish` completes them."""

    def __init__(self, folder: Path, subject: Subject, *, text: TextWriter | None, coco: CocoWriter | None):
        self.folder, self.text, self.coco = folder, text, coco
        self.results_file = folder / f"{subject.weights[0].stem}_predictions.json"
        self.drawings = Drawings(folder, subject.names)

    @property
    def observers(self) -> Sequence[EvaluationObserver]:
        return self.drawings, DetectionFiles([writer for writer in (self.text, self.coco) if writer])

    def finish(self, metrics: Metrics) -> Path:
        """Write what waits for the end, and return the folder. Raise UserError if a file cannot be written."""
        if self.coco:
            self.coco.finish(self.results_file, metrics)
        if self.text:
            console.result(f"{self.text.num_files} labels saved to {self.folder / 'labels'}")
        require_written(self.drawings.plotter.unwritten)
        console.result(f"Results saved to {self.folder}")
        return self.folder
