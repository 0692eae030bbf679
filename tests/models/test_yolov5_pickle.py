"""Reader of YOLOv5 pickles: tensors as torch reads them. Hostile and damaged files are refused."""

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from small_models import RELEASES, published_weights, require_one_line, save_pickled, tiny_model
from torch import nn

from models import loading
from models.loading import read_weights
from models.yolov5_pickle import PickledObject, YOLOv5File
from utils.errors import UserError
from utils.safe_pickle import OPCODES


@pytest.fixture(scope="module")
def released(reference):
    return published_weights(reference)


@pytest.fixture
def canary(tmp_path):
    """Yield a path that a pickle may run `touch` on, and require that none did."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists(), "code in a weights file was run"


def write_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **settings) -> Path:
    """Write an archive as torch does, with the pickle `data`."""
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, block in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", block)
    return path


def call(module: str, name: str, argument: str) -> bytes:
    """Return a pickle (protocol 2) of {"model": module.name(argument)}."""
    text = argument.encode()
    function = f"c{module}\n{name}\n".encode()
    return b"\x80\x02}X\x05\x00\x00\x00model" + function + b"X" + struct.pack("<I", len(text)) + text + b"\x85Rs."


def tensor_pickle(numel: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    """Return a pickle of one float tensor over storage "0"."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, entry):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if entry is Token else None

    class Token:
        pass

    class View:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Token, offset, shape, strides, False, OrderedDict())

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(View())
    return file.getvalue()


@pytest.mark.parametrize("name", RELEASES)
def test_published_tensors_are_as_torch_reads_them(name, released):
    """The bytes of a tensor are those of one of the archive's storages."""
    with zipfile.ZipFile(released / name) as archive, YOLOv5File(released / name) as file:
        folder = archive.namelist()[0].split("/")[0]
        state = file.state_dict(file.content["model"])
        weight = state["model.0.conv.weight"]
        assert weight.dtype == torch.float16
        blocks = [archive.read(entry) for entry in archive.namelist() if entry.startswith(f"{folder}/data/")]
        assert weight.numpy().tobytes() in blocks


# a callable that a pickle may name
@pytest.mark.parametrize(
    "module, name",
    [
        ("posix", "system"),
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "getoutput"),
        ("builtins", "__import__"),
        ("torch.storage", "_load_from_bytes"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("runpy", "run_path"),
        ("utils.files", "read_yaml"),
        ("operator", "methodcaller"),
    ],
)
def test_other_callables_are_refused(module, name, tmp_path, canary):
    data = call(module, name, f"touch {canary}")
    stream = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "old.pt").write_bytes(stream + data)
    for file in (write_zip(tmp_path / "new.pt", data), tmp_path / "old.pt"):
        with pytest.raises(UserError, match=f"{file.name}: refused: the file calls {module}.{name}") as error:
            read_weights(file)
        require_one_line(error)


def test_a_pickled_command_is_refused(tmp_path, canary):
    """An attack: an object that reduces to os.system, inside an otherwise valid file."""

    class Command:
        def __reduce__(self):
            import os

            return os.system, (f"touch {canary}",)

    for zipped in (True, False):
        with pytest.raises(UserError, match="refused: the file calls (posix|nt).system"):
            read_weights(save_pickled(tiny_model(), tmp_path / "m.pt", zipped=zipped, extra=Command()))
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Command()))
    with pytest.raises(UserError, match="refused"):
        read_weights(tmp_path / "bare.pt")


def test_placeholders_run_nothing(tmp_path, canary):
    """Names in the model packages become PickledObjects, also those of dangerous functions."""
    for module, name in (("models.common", "os.system"), ("models.os", "system"), ("torch.nn.modules.module", "eval")):
        file = write_zip(tmp_path / "m.pt", call(module, name, f"touch {canary}"))
        with YOLOv5File(file) as read:
            assert isinstance(read.content["model"], PickledObject)


def test_a_file_cannot_change_later_files(tmp_path):
    """Setting attributes on placeholders, functions or shared classes fails, or ends with the reading."""
    before = dict(vars(PickledObject))
    for module, name in (
        ("models.common", "Conv"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("builtins", "set"),
        ("torch", "FloatStorage"),
    ):
        # BUILD with (None, {"evil": 1}) sets attributes on the object itself.
        data = b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"N}X\x04\x00\x00\x00evilK\x01s\x86b."
        try:
            with YOLOv5File(write_zip(tmp_path / "m.pt", data)):
                pass
        except UserError:
            pass
    assert dict(vars(PickledObject)) == before and not hasattr(OrderedDict, "evil") and not hasattr(torch.Size, "evil")
    assert not hasattr(loading.read_yolov5, "evil")


def test_tensors_must_fit_their_storage(tmp_path):
    # storage values, offset, shape, strides
    for layout in (
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (4, 1)),
        (4, -1, (2,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (1 << 40,), (0,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, (-2,), (1,)),
        (4, 0, (2.0,), (1,)),
    ):
        file = write_zip(tmp_path / "m.pt", tensor_pickle(*layout), {"0": bytes(16)})
        with (
            pytest.raises(UserError, match="m.pt: damaged, cut off or no YOLOv5 checkpoint .*tensor") as error,
            YOLOv5File(file),
        ):
            pass
        require_one_line(error)


def test_tensors_are_rebuilt_from_views(tmp_path):
    values = torch.arange(6.0)
    # offset, shape, strides, values
    for offset, shape, strides, want in (
        (0, (2, 3), (3, 1), [[0, 1, 2], [3, 4, 5]]),
        (1, (2, 2), (1, 2), [[1, 3], [2, 4]]),
        (5, (), (), 5.0),
        (0, (0, 3), (3, 1), []),
    ):
        file = write_zip(tmp_path / "m.pt", tensor_pickle(6, offset, shape, strides), {"0": values.numpy().tobytes()})
        with YOLOv5File(file) as read:
            assert read.tensor(read.content).tolist() == want
    file = write_zip(tmp_path / "m.pt", tensor_pickle(0, 0, (0,), (1,)), {"0": b""})
    with YOLOv5File(file) as read:
        assert read.tensor(read.content).shape == (0,)


def test_storages_must_have_their_size(tmp_path):
    for storages in ({"0": bytes(15)}, {"0": bytes(400)}, {}):
        with (
            YOLOv5File(write_zip(tmp_path / "m.pt", tensor_pickle(4, 0, (4,), (1,)), storages)) as read,
            pytest.raises(UserError, match="m.pt: damaged or cut off: storage 0"),
        ):
            read.tensor(read.content)


def test_bombs_are_refused(tmp_path):
    packed = write_zip(tmp_path / "m.pt", bytes(1 << 20), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="data.pkl is compressed"):
        read_weights(packed)
    # A memo index of 2 billion, and an opcode that allocates 1 TiB, before anything else is read.
    for data in (b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"."):
        with pytest.raises(UserError):
            read_weights(write_zip(tmp_path / "m.pt", data))
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    model = tiny_model()
    model.yaml["more"] = nested
    with pytest.raises(UserError, match="too large"):
        read_weights(save_pickled(model, tmp_path / "m.pt"))
    branch = nn.Sequential()
    for _ in range(40):
        branch = nn.Sequential(branch, branch)
    model = tiny_model()
    model.extra = branch
    with pytest.raises(UserError, match="unfolds"):
        read_weights(save_pickled(model, tmp_path / "m.pt"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_cut_files(tmp_path, zipped):
    whole = save_pickled(tiny_model(), tmp_path / "whole.pt", zipped=zipped).read_bytes()
    file = tmp_path / "cut.pt"
    for share in (0, 1, 3, 10, 100, len(whole) // 4, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        file.write_bytes(whole[:share])
        with pytest.raises(UserError, match="cut.pt: ") as error:
            read_weights(file)
        require_one_line(error)


def test_flipped_bytes_never_escape(tmp_path):
    """Reading any damaged pickle ends in a UserError of one line."""
    with zipfile.ZipFile(save_pickled(tiny_model(), tmp_path / "whole.pt")) as archive:
        names = archive.namelist()
        data = archive.read(next(name for name in names if name.endswith("data.pkl")))
    places = torch.randint(len(data), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        broken = data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :]
        with pytest.raises(UserError) as error:  # without storages it is never complete
            read_weights(write_zip(tmp_path / "m.pt", broken))
        require_one_line(error)


def test_opcodes_cover_what_torch_writes(tmp_path):
    """No opcode of a real file is missing from the list."""
    with zipfile.ZipFile(save_pickled(tiny_model(), tmp_path / "m.pt")) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert {op.name for op, _, _ in pickletools.genops(data)} <= set(OPCODES)
