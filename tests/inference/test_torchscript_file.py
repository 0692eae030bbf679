"""Checks of TorchScript files: traced networks pass, programs that do more are never loaded."""

import io
import os
import warnings
import zipfile

import pytest
import torch
from torch import nn

from models.yolo import DetectionModel
from utils.errors import UserError, one_line
from utils.inference import torchscript_file
from utils.inference.torchscript_file import check_code, read_torchscript


def save(path, module: nn.Module, trace: bool = False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(1, 3, 64, 64)
        made = torch.jit.trace(module, images, strict=False, check_trace=False) if trace else torch.jit.script(module)
        made.save(str(path), _extra_files={"config.txt": "{}"})
    return path


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_torchscript(path)
    message = str(caught.value)
    assert str(path) in message and one_line(message) == message
    return message


class Decoded(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.model = DetectionModel(cfg).eval()

    def forward(self, images):
        return self.model(images)[0]


def test_a_traced_network_is_loaded_as_it_is(tiny_cfg, tmp_path):
    network, images = Decoded(tiny_cfg).eval(), torch.rand(1, 3, 64, 64)
    extra = {"config.txt": ""}
    loaded = torch.jit.load(read_torchscript(save(tmp_path / "a.torchscript", network, True)), _extra_files=extra)
    assert extra["config.txt"] == b"{}"
    with torch.inference_mode():
        assert torch.allclose(loaded(images), network(images), atol=1e-4)


class WritesWhenLoaded(nn.Module):
    def __init__(self, canary: str):
        super().__init__()
        self.canary = canary

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.canary

    @torch.jit.export
    def __setstate__(self, state: str) -> None:
        self.canary, self.training = state, False
        torch.save(torch.zeros(3), state)

    def forward(self, images):
        return images


def test_a_program_that_writes_while_it_is_loaded_is_not_loaded(tmp_path):
    canary = tmp_path / "canary"
    file = save(tmp_path / "a.torchscript", WritesWhenLoaded(str(canary)))
    assert not canary.exists()
    assert "calls a function of files" in refusal(file) and not canary.exists()
    torch.jit.load(str(file))
    assert canary.exists(), "PyTorch itself ran it: the check is needed"


class Loops(nn.Module):
    def forward(self, images):
        while bool(images.sum() >= 0):
            images = images + 1
        return images


def test_a_loop_is_refused(tmp_path):
    assert "has a loop" in refusal(save(tmp_path / "a.torchscript", Loops()))


@pytest.mark.parametrize(
    "code, reason",
    [
        ("    return torch.add(x, x)", ""),
        ("    return ops.prim.NumToTensor(torch.size(x, 0))", ""),
        ("    return ops.torchvision.nms(x, x, 0.5)", ""),
        ('    return getattr(model, "24")', ""),
        ("  model : __torch__.torch.nn.modules.container.Sequential\n  save : List[int]", ""),
        ("    torch.save(x, 'a')", "function of files"),
        ("    y = torch.from_file('a', True, 9)", "function of files"),
        ("    x.save('a')", "function of files"),
        ("    x.\\\n  save('a')", "function of files"),
        ("    f = x . save", "function of files"),
        ("    ops.aten.save(x, 'a')", "function of files"),
        ("    ops.image.write_file('a', x)", "function of files"),
        ("    y = torch\n    y.sa", "no call of a tensor function"),
        ("    y = ops.aten\n    y.x()", "no call of a tensor function"),
        ("    ops.image.decode(x)", "no call of a tensor function"),
        ('    getattr(torch, "sa")', "no call of a tensor function"),
        ('    getattr(x, "sa" "ve")', "no call of a tensor function"),
        ('    getattr(x, "\\x73ave")', "no call of a tensor function"),
        ("  def __setstate__(self):", "runs code while it is loaded"),
        ("    for i in range(9):", "has a loop"),
        ("  p : __torch__.torch.classes.quantized.Conv2dPackedParamsBase", "no modules"),
        ("    y = fork(x)", "starts threads"),
    ],
)
def test_code_that_only_computes_tensors(tmp_path, code, reason):
    if not reason:
        check_code(code, tmp_path)
        return
    with pytest.raises(UserError, match=reason):
        check_code(code, tmp_path)


def archive(path, *, compress: int = zipfile.ZIP_STORED, **records: bytes):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compress) as file:
        warnings.simplefilter("ignore")  # two records of one name
        for name, content in records.items():
            file.writestr(f"a/{name}", content)
    return path


def test_archives_of_something_else(tmp_path, monkeypatch):
    file = tmp_path / "a.torchscript"
    for content in (b"", b"PK\x03\x04" + bytes(50), b"x" * 1000):
        file.write_bytes(content)
        assert "not a TorchScript file" in refusal(file)
    torch.save({"a": torch.zeros(3)}, file)
    assert "no program in it" in refusal(file)
    monkeypatch.setattr(torchscript_file, "MAX_CODE", 1 << 16)
    archive(file, compress=zipfile.ZIP_DEFLATED, **{"constants.pkl": bytes(1 << 17)})
    assert "unpack to many times their size" in refusal(file)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as twice:
        warnings.simplefilter("ignore")
        for _ in range(2):
            twice.writestr("a/constants.pkl", b"")
    assert "overlap" in refusal(file)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "a.torchscript")
    assert "not a regular file" in refusal(tmp_path / "a.torchscript")
    assert "No such file" in refusal(tmp_path / "b.torchscript")


def test_a_file_cut_anywhere_is_refused(tmp_path, tiny_cfg):
    whole = save(tmp_path / "a.torchscript", Decoded(tiny_cfg).eval(), True).read_bytes()
    for size in range(0, len(whole), len(whole) // 20):
        (tmp_path / "b.torchscript").write_bytes(whole[:size])
        assert "not a TorchScript file" in refusal(tmp_path / "b.torchscript")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (tmp_path / "b.torchscript").write_bytes(changed)
    assert "Bad CRC" in refusal(tmp_path / "b.torchscript")
    assert isinstance(read_torchscript(tmp_path / "a.torchscript"), io.BytesIO)
