"""Experiment trackers: TensorBoard, MLflow, Weights & Biases, ClearML, Comet and Trackio.

Their packages are imported only in the process of `tracker_process.py`.
"""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN_PROJECT = "anchorage"  # for trackers that have no project of their own


@dataclass(frozen=True)
class Start:
    """Description of the run."""

    tool: str
    folder: str
    name: str
    project: str  # "" leaves it to the tracker's own settings
    config: dict[str, Any]  # flags, hyperparameters, command and versions
    resumed: bool  # continue the logged run of an earlier part
    stale: dict[str, int]  # files of an earlier run in the folder, and when they were changed
    seconds: float  # for the rest at the end of a run


class Tracker:
    """Logged run in an experiment tracker. Any method may raise any exception, or hang."""

    id = ""
    place = ""  # where people look at it
    last_epoch = -1  # that the tracker itself knows of

    def __init__(self, start: Start, record: "Record"):
        """Begin a logged run, or continue that of the record if it has an id."""

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Log the row of an epoch."""

    def log_image(self, file: Path, epoch: int) -> None:
        """Log an image of the run folder."""

    def log_weights(self, file: Path) -> None:
        """Keep a weights file as an artifact."""

    def close(self, *, finished: bool) -> None:
        """Send what is waiting, and end this part of the run."""


class TensorBoard(Tracker):
    """Event files in the run folder. Events of earlier files from the first new epoch on are replaced."""

    def __init__(self, start: Start, record: "Record"):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.id, self.place = "events", f"tensorboard --logdir {start.folder}"
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(start.folder)
        first = record.epoch + 1
        self._writer.add_event(
            Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START))
        )
        if not record.id:  # of several the first counts
            self._add(first, hparams_pb(start.config))

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def log(self, epoch: int, values: dict[str, float]) -> None:
        entries = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(epoch, self._summary(value=entries))

    def log_image(self, file: Path, epoch: int) -> None:
        from PIL import Image

        with Image.open(file) as image:
            width, height = image.size
        content = self._summary.Image(encoded_image_string=file.read_bytes(), width=width, height=height, colorspace=3)
        self._add(epoch, self._summary(value=[self._summary.Value(tag=file.stem, image=content)]))

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class MLflow(Tracker):
    """Run of an experiment on the server that MLFLOW_TRACKING_URI names, or in local files."""

    def __init__(self, start: Start, record: "Record"):
        import mlflow

        self._mlflow = mlflow
        if start.project:
            mlflow.set_experiment(start.project)
        run = mlflow.start_run(run_id=record.id or None, run_name=start.name, log_system_metrics=False)
        self.id, self.place = run.info.run_id, f"{mlflow.get_tracking_uri()}, run {run.info.run_id}"
        if record.id:  # parameters of a run cannot be changed
            metric = next(iter(run.data.metrics), None)
            history = mlflow.MlflowClient().get_metric_history(record.id, metric) if metric else []
            self.last_epoch = max((point.step for point in history), default=-1)
        else:
            entries = list(start.config.items())
            for first in range(0, len(entries), 100):  # at most in one request
                mlflow.log_params(dict(entries[first : first + 100]))
        mlflow.set_tag("command", start.config["command"])

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=epoch)

    def log_image(self, file: Path, epoch: int) -> None:
        self._mlflow.log_artifact(str(file), "images")

    def log_weights(self, file: Path) -> None:
        self._mlflow.log_artifact(str(file), "weights")

    def close(self, *, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "KILLED")


class WandB(Tracker):
    """Run of Weights & Biases. `epoch` is the axis of all charts.

    W&B's own steps have to grow, and are written once: an epoch has two, the second for images.
    """

    def __init__(self, start: Start, record: "Record"):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=start.project or None,
            name=start.name,
            id=record.id or uuid.uuid4().hex[:12],
            resume="allow",
            config=start.config,
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self.id, self.place = self._run.id, self._run.url or self._run.dir
        self._run.define_metric("*", step_metric="epoch")
        self.last_epoch = int(self._run.summary.get("epoch", -1))

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self._run.log({"epoch": epoch, **values}, step=2 * epoch, commit=True)

    def log_image(self, file: Path, epoch: int) -> None:
        self._run.log({f"images/{file.stem}": self._wandb.Image(str(file))}, step=2 * epoch + 1)

    def log_weights(self, file: Path) -> None:
        artifact = self._wandb.Artifact(f"run_{self.id}_{file.stem}", type="model")
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class ClearML(Tracker):
    """Task of ClearML."""

    def __init__(self, start: Start, record: "Record"):
        from clearml import Task
        from clearml.utilities.check_updates import CheckPackageUpdates

        CheckPackageUpdates._package_version_checked = True  # a request to its makers, also with a server of one's own
        self._task = Task.init(
            project_name=start.project or OWN_PROJECT,
            task_name=start.name,
            reuse_last_task_id=record.id or False,
            continue_last_task=0 if record.id else False,  # 0: epochs are not counted from the end of the earlier part
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        self.id = self._task.id
        self.place = "offline session" if Task.is_offline() else self._task.get_output_log_web_page()
        self._task.connect(dict(start.config), name="run")
        if record.id:
            self.last_epoch = self._task.get_last_iteration() or -1
        self._logger = self._task.get_logger()

    def log(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            title, _, series = name.partition("/")
            self._logger.report_scalar(title, series, value, epoch)
        self._logger.flush()

    def log_image(self, file: Path, epoch: int) -> None:
        self._logger.report_image("images", file.stem, epoch, local_path=str(file), delete_after_upload=False)

    def log_weights(self, file: Path) -> None:
        self._task.upload_artifact(file.name, str(file), wait_on_upload=True)

    def close(self, *, finished: bool) -> None:
        self._task.mark_completed() if finished else self._task.mark_stopped()
        self._task.close()


class Comet(Tracker):
    """Experiment of Comet."""

    def __init__(self, start: Start, record: "Record"):
        import comet_ml

        self.id = record.id or uuid.uuid4().hex
        self._experiment = comet_ml.start(
            project_name=start.project or None,
            experiment_key=self.id,
            mode="get_or_create",
            experiment_config=comet_ml.ExperimentConfig(
                name=start.name,
                log_code=False,
                log_graph=False,
                parse_args=False,
                display_summary_level=0,
                log_git_metadata=False,
                log_git_patch=False,
                log_env_details=False,
                auto_output_logging="",
                auto_param_logging=False,
                auto_metric_logging=False,
                auto_log_co2=False,
            ),
        )
        self.place = getattr(self._experiment, "url", None) or "offline archive, see comet upload"
        self._experiment.log_parameters(start.config)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self._experiment.log_metrics(values, step=epoch, epoch=epoch)

    def log_image(self, file: Path, epoch: int) -> None:
        self._experiment.log_image(str(file), name=file.stem, step=epoch)

    def log_weights(self, file: Path) -> None:
        self._experiment.log_model(file.stem, str(file))

    def close(self, *, finished: bool) -> None:
        self._experiment.end()


class Trackio(Tracker):
    """Run of Trackio, in local files, or where its environment variables say."""

    def __init__(self, start: Start, record: "Record"):
        import trackio

        self._trackio, project = trackio, start.project or OWN_PROJECT
        self.id = record.id or f"{start.name}-{uuid.uuid4().hex[:8]}"  # its name, which has to be new
        self._run = trackio.init(
            project, name=self.id, config=start.config, resume="allow", embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip
        self.place = f"trackio show --project {project}, run {self.id}"

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self._run.log(values, step=epoch)

    def log_image(self, file: Path, epoch: int) -> None:
        self._run.log({f"images/{file.stem}": self._trackio.Image(str(file))}, step=epoch)

    def log_weights(self, file: Path) -> None:
        self._run.log_artifact(str(file), name=f"{self.id}-{file.stem}", type="model")

    def close(self, *, finished: bool) -> None:
        self._run.finish()


# ---- what was sent

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "clearml": ClearML,
    "comet": Comet,
    "trackio": Trackio,
}


@dataclass
class Record:
    """Record of what a tracker has of a run: `log-<tool>.json` in the run folder."""

    id: str = ""
    epoch: int = -1  # the last one
    files: dict[str, int] = field(default_factory=dict)  # images, and when they were changed

    @classmethod
    def read(cls, start: Start) -> "Record":
        """Return the record of an earlier part of the run, an empty one for a new run or without a file."""
        try:
            return cls(**json.loads(record_file(Path(start.folder), start.tool).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path, tool: str) -> None:
        """Replace the file, atomically."""
        file = record_file(folder, tool)
        draft = file.with_name(f".{file.name}.tmp")
        draft.write_text(json.dumps(vars(self)))
        draft.replace(file)


def record_file(folder: Path, tool: str) -> Path:
    """Return the file with the record of a tracker."""
    return folder / f"log-{tool}.json"


def changed_at(file: Path) -> int:
    """Return when a file was changed, 0 if it is absent."""
    with suppress(OSError):
        return file.stat().st_mtime_ns
    return 0


def list_files(folder: Path) -> dict[str, int]:
    """Return results.csv and the images of a run folder by name, with the times at which they were changed."""
    files = [folder / "results.csv", *sorted(folder.glob("*.jpg")), *sorted(folder.glob("*.png"))]
    return {file.name: changed_at(file) for file in files if file.is_file()}
