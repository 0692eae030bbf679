"""Recipe of a run: hyperparameters and flags, chosen by its start, the size of its data and its length.

A recipe is a YAML file in data/hyps/recipes. It holds hyperparameters and the flags in FLAGS. These keys nest:
`scratch` and `weights` apply to runs that start so, and each entry of the list `cases` if its conditions hold. Later
and inner values win. `why` is a reason to print. `auto` holds the conditions under which `--recipe auto` takes it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.cli import shorten, suggest
from utils.config import Hyperparameters, TrainOptions
from utils.console import info
from utils.errors import UserError
from utils.files import ROOT, read_yaml
from utils.loading.sampler import steps_per_epoch

FOLDER = ROOT / "data" / "hyps" / "recipes"
YOLOV5 = "yolov5"  # no recipe: the defaults, which are those of YOLOv5, and --hyp
AUTO = "auto"
FLAGS = ("optimizer", "cos_lr", "nbs", "label_smoothing")
STARTS = ("scratch", "weights")
ASSUMED_BATCH = 16  # for counting steps while --batch-size -1 is not settled


class Facts(NamedTuple):
    """Properties of a run that a recipe depends on."""

    start: str  # scratch or weights
    images: int  # of the training split
    steps: int  # batches of all epochs

    def meet(self, conditions: Mapping[str, float]) -> bool:
        """Return True if all conditions hold: `images_below`, `images_from`, `steps_below` and `steps_from`."""
        values = {"images": self.images, "steps": self.steps}
        return all((values[key.split("_")[0]] < limit) == key.endswith("_below") for key, limit in conditions.items())


CONDITIONS = tuple(f"{value}_{bound}" for value in ("images", "steps") for bound in ("below", "from"))


class Settings(NamedTuple):
    """Values that a recipe settles: those that were typed are not among them."""

    flags: dict[str, Any]
    hyp: dict[str, float]


def run_facts(options: TrainOptions, *, weights: str, num_images: int) -> Facts:
    """Return the facts of a run that starts from `weights` ("" from scratch) on `num_images` images."""
    batch_size = ASSUMED_BATCH if options.batch_size == -1 else options.batch_size
    steps = options.epochs * steps_per_epoch(max(num_images, 1), batch_size, quad=False, world_size=1)
    return Facts("weights" if weights else "scratch", num_images, steps)


def apply_recipe(
    options: TrainOptions, hyp: Hyperparameters, *, weights: str, num_images: int
) -> tuple[TrainOptions, Hyperparameters]:
    """Return options and hyperparameters of a new run with the values of its `--recipe`. Print what it chose and why.

    Typed flags and the keys of a typed `--hyp` file stay as they are.
    """
    chosen = choose_settings(options, run_facts(options, weights=weights, num_images=num_images))
    return options.replace(**chosen.flags), Hyperparameters.from_dict({**hyp.to_dict(), **chosen.hyp})


def settle_search(
    options: TrainOptions, hyp: Hyperparameters, *, weights: str, num_images: int
) -> tuple[TrainOptions, Hyperparameters]:
    """Return options and hyperparameters that a search starts from.

    Its trainings get the settled values: as typed flags, as hyperparameters, and no recipe.
    """
    settled, hyp = apply_recipe(options, hyp, weights=weights, num_images=num_images)
    changed = {key for key in FLAGS if getattr(settled, key) != getattr(options, key)}
    typed = options.typed | changed | ({"recipe"} if options.recipe != YOLOV5 else set())
    return settled.replace(recipe=YOLOV5, typed=typed), hyp


def choose_settings(options: TrainOptions, facts: Facts) -> Settings:
    """Return what the recipe of `options` changes, and print three lines about it."""
    file = choose_file(options, facts)
    if file is None:
        return Settings({}, {})
    values, reasons = settle(read_recipe(file), facts)
    kept = {key for key in values if key in options.typed} | (values.keys() & typed_hyperparameters(options))
    settings = {key: value for key, value in values.items() if key not in kept}
    name = f"{AUTO} ({file.stem})" if options.recipe == AUTO else options.recipe
    own = f"; typed, so kept: {', '.join(sorted(kept))}" if kept else ""
    info(f"Recipe {name}: {facts.images} images, {facts.steps} batches, from {facts.start}{own}")
    info("Recipe sets " + (", ".join(f"{key} {value}" for key, value in settings.items()) or "nothing"))
    info("Recipe's reasons: " + ("; ".join(reasons) or "none given"))
    flags = {key: value for key, value in settings.items() if key in FLAGS}
    return Settings(flags, {key: float(value) for key, value in settings.items() if key not in FLAGS})


def typed_hyperparameters(options: TrainOptions) -> set[str]:
    """Return the keys of the `--hyp` file if it was typed."""
    return set(read_yaml(Hyperparameters.find(options.hyp, FOLDER.parent))) if "hyp" in options.typed else set()


def recipe_files() -> dict[str, Path]:
    """Return the recipes of this project by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def choose_file(options: TrainOptions, facts: Facts) -> Path | None:
    """Return the file of `--recipe`: a name or a path, or for `auto` the first whose conditions hold. None: no recipe.

    `auto` is none where `--hyp` or `--optimizer` is typed, since these are a recipe of the user's.
    """
    name, files = options.recipe, recipe_files()
    if name == YOLOV5:
        return None
    if name == AUTO:
        if options.typed & {"hyp", "optimizer"}:
            return None
        conditions = ((file, read_recipe(file).get(AUTO)) for file in files.values())
        return next((file for file, needed in conditions if needed and facts.meet(needed)), None)
    if name in files:
        return files[name]
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    known = [YOLOV5, AUTO, *files]
    raise UserError(f"--recipe {name}: neither a file nor one of {', '.join(known)}{suggest(name, known)}")


def read_recipe(file: Path) -> dict[str, Any]:
    """Return the content of a recipe. Raises UserError naming file and key for anything that is wrong in it."""
    recipe = read_yaml(file)
    check_section(recipe, str(file))
    check_conditions(as_section(recipe.get(AUTO, {}), f"{file}: {AUTO}"), f"{file}: {AUTO}")
    return recipe


def as_section(value: object, place: str) -> dict[str, Any]:
    """Return a value that is a section. Raises UserError naming its place otherwise."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: {shorten(value)} is not a section with keys")
    return value


def check_section(section: Mapping[str, Any], place: str, *, is_case: bool = False) -> None:
    """Raise UserError unless all keys of a section, and of those inside it, are known and have values of their type."""
    cases = section.get("cases", [])
    if not isinstance(cases, list):
        raise UserError(f"{place}: cases: {shorten(cases)} is not a list")
    for key in (key for key in STARTS if key in section):
        check_section(as_section(section[key], f"{place}: {key}"), f"{place}: {key}")
    for case in cases:
        check_section(as_section(case, f"{place}: cases"), f"{place}: cases", is_case=True)
    given = {key: section[key] for key in CONDITIONS if key in section}
    if given and not is_case:
        raise UserError(f"{place}: {next(iter(given))}: conditions belong in an entry of cases")
    check_conditions(given, place)
    values = dict(own_values(section))
    TrainOptions.from_dict({key: value for key, value in values.items() if key in FLAGS}, place)
    Hyperparameters.from_dict({key: value for key, value in values.items() if key not in FLAGS}, place)
    if "anchors" in values:
        raise UserError(f"{place}: anchors: a recipe cannot set their number; give a --hyp file with it")


def check_conditions(conditions: Mapping[str, Any], place: str) -> None:
    """Raise UserError unless all keys are conditions, and all values counts."""
    for key, value in conditions.items():
        if key not in CONDITIONS:
            raise UserError(f"{place}: unknown condition {key}{suggest(f'{key}', CONDITIONS)}")
        if type(value) is not int or value < 0:
            raise UserError(f"{place}: {key}: {shorten(value)} is not a number of {key.split('_')[0]}")


def own_values(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the hyperparameters and flags of a section, without those inside `scratch`, `weights` and `cases`."""
    special = {*STARTS, *CONDITIONS, AUTO, "cases", "why"}
    return ((key, value) for key, value in section.items() if key not in special)


def settle(section: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a section for a run, and the reasons given for them."""
    values, reasons = dict(own_values(section)), [f"{section['why']}"] if "why" in section else []
    cases = [case for case in section.get("cases", []) if facts.meet({k: case[k] for k in CONDITIONS if k in case})]
    for part in [*([section[facts.start]] if facts.start in section else []), *cases]:
        inner, why = settle(part, facts)
        values.update(inner)
        reasons += why
    return values, reasons
