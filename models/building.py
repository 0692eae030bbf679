"""The model that a training begins with: of a resumed run, from weights, or new from a YAML."""

from pathlib import Path

from models.loading import read_weights, resolve_weights, transfer
from models.yolo import DetectionModel
from utils.config import Hyperparameters, TrainOptions
from utils.errors import UserError
from utils.training.startup import Request


def build_model(request: Request, hyp: Hyperparameters, names: dict[int, str]) -> DetectionModel:
    """The model on the CPU: of a resumed run, from weights (transferred by name and shape), or new from a YAML."""
    options = request.options
    settings = {"num_classes": len(names), "anchors": fitted_anchors(options, hyp)}
    path = None if request.resumed else starting_weights(options, request.typed)
    if request.resumed:
        model = DetectionModel(request.resumed["model"]["yaml"])
        if model.num_classes != len(names):
            raise UserError(
                f"{options.resume}: a model of {model.num_classes} classes, but {options.data} names "
                f"{len(names)}; start a new run with --weights {options.resume}"
            )
    elif path is None:
        cfg = options.cfg or Path(options.weights).with_suffix(".yaml").name
        model = DetectionModel(cfg, **settings)
        print(f"Model {cfg} from scratch, {size_of(model)}")
    else:
        file = read_weights(path)
        model = DetectionModel(options.cfg or file.yaml, **settings)
        moved = transfer(model, file.state_dict, exclude=("anchor",) if options.cfg or settings["anchors"] else ())
        print(f"Transferred {moved.matched}/{moved.total} tensors from {path}, {size_of(model)}")
    model.names = names
    return model


def settle_start(request: Request) -> TrainOptions:
    """The options with what a new model really begins with: where it is from scratch no weights, but a YAML."""
    options = request.options
    if request.resumed or starting_weights(options, request.typed):
        return options
    return options.replace(weights="", cfg=options.cfg or Path(options.weights).with_suffix(".yaml").name)


def size_of(model: DetectionModel) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def fitted_anchors(options: TrainOptions, hyp: Hyperparameters) -> int | None:
    """How many anchors a level are to be fitted to the data; None keeps the model's own."""
    if hyp.anchors and options.noautoanchor:
        print(
            f"WARNING anchors: {hyp.anchors} in --hyp must be fitted to the data, which --noautoanchor switches off: "
            "keeping the model's own anchors"
        )
        return None
    return round(hyp.anchors) or None


def starting_weights(options: TrainOptions, typed: frozenset[str]) -> Path | None:
    """The file to start from, None to start from scratch. Only weights that the user named are ever downloaded."""
    if not options.weights or (options.cfg and "weights" not in typed):
        return None
    if "weights" in typed:
        return resolve_weights(options.weights, allow_download=True)
    try:
        return resolve_weights(options.weights, allow_download=False)
    except UserError:
        print(f"{options.weights} is not here: starting from scratch (--weights {options.weights} would fetch it)")
        return None
