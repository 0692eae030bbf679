"""Settings of the non-maximum suppression, which travel together from the command line to the boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from utils.class_values import Thresholds
from utils.console import info, warn
from utils.detector import InferenceModel
from utils.nms import non_max_suppression


@dataclass(frozen=True)
class NmsSettings:
    """Thresholds and choices of the non-maximum suppression."""

    conf_thres: float | Thresholds | tuple[float, ...] = 0.25  # `fit` makes Thresholds a number for each class
    iou_thres: float = 0.45
    max_det: int = 300  # detections per image
    classes: Sequence[int] | None = None  # keep only these
    agnostic: bool = False  # boxes of different classes suppress each other too
    multi_label: bool = False  # a box may have several classes
    hybrid: bool = False  # labels join the candidates with confidence 1, where the labels are known

    def fit(self, model: InferenceModel, names: Mapping[int, str] | None = None) -> "NmsSettings":
        """Return the settings for what this model returns: suppressed boxes are not suppressed again.

        At an IoU threshold of 1 no box suppresses another. Thresholds of confidence and classes still hold. `names`:
        of the classes that thresholds name, those of the model if None. UserError for a class that is not among them.
        """
        limits = self.conf_thres
        if isinstance(limits, Thresholds):
            proposed = model.advice.thresholds if limits.auto else {}
            limits = limits.resolve(names or model.names, proposed)
        return replace(self, conf_thres=limits, iou_thres=1.0 if model.is_suppressed else self.iou_thres)

    def down_to(self, confidence: float) -> "NmsSettings":
        """Return fitted settings with thresholds of at most this confidence."""
        limits = self.fitted_limits
        if isinstance(limits, tuple):
            return replace(self, conf_thres=tuple(min(limit, confidence) for limit in limits))
        return replace(self, conf_thres=min(limits, confidence))

    @property
    def fitted_limits(self) -> float | tuple[float, ...]:
        """Threshold of confidence of fitted settings, or one for each class."""
        assert not isinstance(self.conf_thres, Thresholds), "see fit"
        return self.conf_thres

    def with_room(self, most_labels: int, subject: str, *, typed: bool = False) -> "NmsSettings":
        """Return the settings with a `max_det` that finds all `most_labels` of an image, and print a line about it.

        A number that the user `typed` stays, with a warning. `subject`: who has the labels, and a verb, for the lines.
        """
        if most_labels <= self.max_det:
            return self
        if typed:
            warn(f"--max-det {self.max_det}: {subject} {most_labels} labels, more than can be found. Omit --max-det")
            return self
        info(f"{subject} {most_labels} labels: up to {most_labels} detections are kept instead of {self.max_det}")
        return replace(self, max_det=most_labels)

    def apply(self, prediction: Tensor, labels: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the boxes of each image that remain (n, 6), as `non_max_suppression` does.

        prediction: (B, N, 5+C) decoded. labels: per image (m, 5) class, x, y, w, h in pixels; read if `hybrid`.
        """
        return non_max_suppression(
            prediction,
            self.fitted_limits,
            self.iou_thres,
            self.classes,
            self.agnostic,
            self.multi_label,
            self.max_det,
            labels=[rows.to(prediction.device) for rows in labels] if self.hybrid and labels is not None else None,
        )


VAL_NMS = NmsSettings(conf_thres=0.001, iou_thres=0.6, multi_label=True)
COCO_NMS = replace(VAL_NMS, iou_thres=0.65)  # the published figures on COCO are measured so
