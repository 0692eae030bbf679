"""Unpickler of bounded work: small files that would take all memory, hang, or call something are refused at once."""

import pickle
import zipfile

import pytest
import torch

from models.loading import read_weights
from utils.checkpoint import read_checkpoint
from utils.errors import UserError


def call(name: str, arguments: bytes) -> bytes:
    """Return a pickle of one of our checkpoints that holds the result of a call."""
    module, _, function = name.rpartition(".")
    start = b"\x80\x02}(X\x09\x00\x00\x00anchorageK\x01X\x01\x00\x00\x00x"
    return start + f"c{module}\n{function}\n".encode() + arguments + b"Ru."


DOUBLED = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60))
NESTED_KEY = b"\x80\x02})q\x000" + DOUBLED + b"h<K\x01s."
NESTED_ITEM = b"\x80\x02})q\x000" + DOUBLED + b"K\x01cbuiltins\nset\n]h<a\x85Rs."
LONG_NAME = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
REPEATED = LONG_NAME + b"q\x010" + b"ctorch\nSize\nq\x020" + b"cpathlib\nPosixPath\n(" + b"h\x01" * 10**4 + b"tR."

HOSTILE = {
    "allocation": call("builtins.bytearray", b"\x8a\x05\x00\x28\x6b\xee\x00\x85"),
    "sparse tensor": call("torch._utils._rebuild_sparse_tensor", b")"),
    "meta tensor": call("torch._utils._rebuild_meta_tensor_no_storage", b")"),
    "nested key": NESTED_KEY,
    "nested item": NESTED_ITEM,
    "repeated text": b"\x80\x02" + REPEATED,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("read", [read_checkpoint, read_weights])
def test_small_files_take_little_memory_and_time(tmp_path, kind, read):
    file = tmp_path / "small.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", HOSTILE[kind])
        archive.writestr("a/version", b"3\n")
    with pytest.raises(UserError, match="small.pt: ") as error:
        read(file)
    assert "\n" not in str(error.value)


def test_the_older_stream_is_bounded_too(tmp_path):
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "old.pt").write_bytes(head + NESTED_KEY + pickle.dumps([], 2))
    for read in (read_checkpoint, read_weights):
        with pytest.raises(UserError, match="old.pt: "):
            read(tmp_path / "old.pt")


@pytest.mark.parametrize("schema", [0, -3, True, 1.0, "1"])
def test_unknown_schemas_are_refused(tmp_path, schema):
    torch.save({"anchorage": schema, "kind": "train"}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="x.pt: not a checkpoint of this project"):
        read_checkpoint(tmp_path / "x.pt")


def test_deep_descriptions_are_refused(tmp_path):
    nested = []
    for _ in range(200):
        nested = [nested]
    torch.save({"anchorage": 1, "model": {"yaml": nested}}, tmp_path / "x.pt")
    for read in (read_checkpoint, read_weights):
        with pytest.raises(UserError, match="x.pt: "):
            read(tmp_path / "x.pt")
