"""Metadata of exports that are folders: a YAML file beside the weights, as YOLOv5 writes it."""

from pathlib import Path

import yaml

from utils.errors import UserError
from utils.files import read_yaml
from utils.inference.model_metadata import ModelMetadata

NAME = "metadata.yaml"


def write_metadata_file(folder: Path, metadata: ModelMetadata) -> None:
    """Write the metadata into a folder. Stride, names and size are values of YAML, the rest is text."""
    content = {
        **metadata.to_properties(),
        "stride": metadata.stride,
        "names": dict(metadata.names),
        "batch": metadata.batch,
        "imgsz": list(metadata.imgsz or ()) or None,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / NAME).write_text(text, encoding="utf-8")


def read_metadata_file(folder: Path) -> dict[str, str]:
    """Return the properties in the YAML file of a folder, as text. Empty without such a file."""
    files = sorted(folder.glob("*.yaml"))
    file = next((one for one in files if one.name == NAME), files[0] if files else None)
    content = read_yaml(file) if file else {}
    if not all(isinstance(key, str) for key in content):
        raise UserError(f"{file}: not the metadata of an export: its keys are no text")
    return {key: value if isinstance(value, str) else str(value) for key, value in content.items()}


def find_model_file(path: Path, suffix: str) -> Path:
    """Return the file with `suffix` in an exported folder, or `path` itself if it is a file.

    Raises UserError if there is none or several.
    """
    if path.is_file():
        return path
    found = sorted(path.glob(f"*{suffix}"))
    if len(found) != 1:
        count = "no" if not found else f"{len(found)}"
        raise UserError(f"{path}: holds {count} {suffix} files, expected one: export it again")
    return found[0]
