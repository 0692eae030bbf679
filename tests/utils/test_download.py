"""Interrupted transfers, servers that cannot resume, unexpected files, hostile archives."""

import base64
import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import detect
import train
import val
from utils import download
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.download import fetch, fetch_typed, unpack
from utils.errors import UserError
from utils.images.sources import open_source

PAYLOAD = bytes(range(256)) * 1200  # 307 200 bytes
SHA = hashlib.sha256(PAYLOAD).hexdigest()


class Server:
    """Plan of the fake server, and the ranges requested from it."""

    def __init__(self, url: str):
        self.url = url
        self.cuts: list[int | None] = []  # bytes after which it cuts the connection of each request; None: no cut
        self.resumable = True
        self.status = 200
        self.say_length = True
        self.redirect, self.drip = "", False
        self.ranges: list[str | None] = []
        self.authorizations: list[str] = []


def mislead(handler: BaseHTTPRequestHandler, plan: Server) -> None:
    """Send a redirect, or headers without end."""
    handler.send_response(302 if plan.redirect else 200)
    if plan.redirect:
        handler.send_header("Location", plan.redirect)
        return handler.end_headers()
    handler.flush_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b"X-Wait: 1\r\n")
            time.sleep(0.02)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0)
    monkeypatch.setattr(download, "TIMEOUT_S", 5)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            plan, wanted = self.server.plan, self.headers.get("Range")
            plan.ranges.append(wanted)
            plan.authorizations += [text for text in [self.headers.get("Authorization")] if text]
            if plan.drip or (plan.redirect and self.path == "/file.bin"):
                return mislead(self, plan)
            if plan.status != 200:
                return self.send_error(plan.status)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and plan.resumable else 0
            if start >= len(PAYLOAD):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(PAYLOAD)}")
                return self.end_headers()
            body = PAYLOAD[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(PAYLOAD) - 1}/{len(PAYLOAD)}")
            if plan.say_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = plan.cuts.pop(0) if plan.cuts else None
            self.wfile.write(body[:cut])

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.plan = Server(f"http://127.0.0.1:{listening.server_port}/file.bin")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield listening.plan
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_a_file_arrives_under_its_name_only(server, tmp_path):
    file = fetch(server.url, tmp_path / "new" / "file.bin", sha256=SHA.upper(), size=len(PAYLOAD), progress=False)
    assert file.read_bytes() == PAYLOAD
    assert [path.name for path in file.parent.iterdir()] == ["file.bin"]
    assert server.ranges == [None]


def test_a_cut_connection_is_taken_up_at_once(server, tmp_path):
    server.cuts = [1000, 5000, 0]
    assert fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False).read_bytes() == PAYLOAD
    assert server.ranges == [None, "bytes=1000-", "bytes=6000-", "bytes=6000-"]


def test_a_later_call_goes_on_where_the_first_broke_off(server, tmp_path):
    server.cuts = [1000, 0, 0]
    expected = rf"could not fetch {server.url} .*1000 of 307200 bytes.*put the file at .*f\.pt"
    with pytest.raises(UserError, match=expected):
        fetch(server.url, tmp_path / "f.pt", progress=False)
    assert not (tmp_path / "f.pt").exists() and (tmp_path / "f.pt.part").stat().st_size == 1000
    assert fetch(server.url, tmp_path / "f.pt", sha256=SHA, progress=False).read_bytes() == PAYLOAD
    assert server.ranges[-1] == "bytes=1000-"


def test_a_server_that_cannot_resume_starts_over(server, tmp_path):
    server.resumable = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False).read_bytes() == PAYLOAD


@pytest.mark.parametrize("part", [PAYLOAD, PAYLOAD + b"more"])
def test_a_complete_or_overlong_part(server, tmp_path, part):
    (tmp_path / "file.bin.part").write_bytes(part)
    assert fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False).read_bytes() == PAYLOAD


@pytest.mark.parametrize("say_length", [True, False])
def test_a_file_larger_than_its_kind_may_be_is_refused(server, tmp_path, monkeypatch, say_length):
    """The limit goes by the suffix, so a server that sends without end does not fill the disk."""
    server.say_length = say_length
    monkeypatch.setitem(download.MAX_BYTES, ".yaml", 300_000)
    monkeypatch.setattr(download, "CHUNK", 1000)
    with pytest.raises(UserError, match=f"{server.url} is larger than 0 MB, which is too much"):
        fetch(server.url, tmp_path / "file.yaml", progress=False)
    assert list(tmp_path.iterdir()) == [] and len(server.ranges) == 1
    with pytest.raises(UserError, match="larger than"):
        fetch(server.url, tmp_path / "image.jpg", progress=False, max_bytes=1000)
    assert fetch(server.url, tmp_path / "file.pt", progress=False).read_bytes() == PAYLOAD


def test_a_file_of_unknown_length_leaves_room_on_the_disk(server, tmp_path, monkeypatch):
    server.say_length = False
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: _Usage(free=400_000))
    with pytest.raises(UserError, match="larger than"):
        fetch(server.url, tmp_path / "file.zip", progress=False)


@pytest.mark.parametrize("target", ["ftp://host/a.yaml", "file:///etc/passwd", "data:,a", None])
def test_redirects_stay_on_the_web(server, tmp_path, target):
    server.redirect = target or server.url.replace("file.bin", "other.bin")
    if target is None:
        assert fetch(server.url, tmp_path / "a", progress=False).read_bytes() == PAYLOAD
        return
    with pytest.raises(UserError, match="redirects to .*: only http:// and https://|could not fetch"):
        fetch(server.url, tmp_path / "a", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_brings_next_to_nothing_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL_S", -1)
    monkeypatch.setattr(download, "STALL_BYTES", 1 << 30)
    with pytest.raises(UserError, match="could not fetch .* bytes in -1 s"):
        fetch(server.url, tmp_path / "a", progress=False)
    assert len(server.ranges) == download.ATTEMPTS


def test_an_answer_that_never_begins_is_given_up(server, tmp_path, monkeypatch):
    """Each byte of its headers arrives in time, their end does not."""
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    server.drip = True
    with pytest.raises(UserError, match="could not fetch .*no answer within 0.3 s"):
        fetch(server.url, tmp_path / "a", progress=False)
    assert len(server.ranges) == download.ATTEMPTS and list(tmp_path.iterdir()) == []


def test_a_user_name_is_sent_but_never_shown(server, tmp_path, here):
    url = server.url.replace("http://", "http://me:sec%2Fret@")
    assert fetch(url, tmp_path / "file.pt", progress=False).read_bytes() == PAYLOAD
    assert server.authorizations == ["Basic " + base64.b64encode(b"me:sec/ret").decode()]
    server.status = 404
    for wrong in (
        url,
        url.replace("sec%2Fret", "sec/ret"),
        "http://me:secret@host:port/a.pt",
        "ftp://me:secret@host/a",
    ):
        with pytest.raises(UserError) as caught:
            fetch(wrong, tmp_path / "other.pt", progress=False)
        assert "sec" not in str(caught.value) and "ret" not in str(caught.value), str(caught.value)
    with pytest.raises(UserError, match="--data http://127.0.0.1.*: the address of a .yaml") as caught:
        fetch_typed({"data": url})
    assert "ret" not in str(caught.value)


def test_a_server_that_sends_no_length(server, tmp_path):
    server.say_length = False
    assert fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False).read_bytes() == PAYLOAD


@pytest.mark.parametrize("expected", [{"sha256": "0" * 64}, {"size": 5}])
def test_a_wrong_file_is_thrown_away(server, tmp_path, expected):
    with pytest.raises(UserError, match="is not the expected one .*expected"):
        fetch(server.url, tmp_path / "file.bin", progress=False, **expected)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_costs_no_request(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(PAYLOAD)
    assert fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False) == tmp_path / "file.bin"
    (tmp_path / "file.bin").write_bytes(b"something of the user's")
    with pytest.raises(UserError, match="delete it and try again"):
        fetch(server.url, tmp_path / "file.bin", sha256=SHA, progress=False)
    assert (tmp_path / "file.bin").read_bytes() == b"something of the user's" and server.ranges == []


@pytest.mark.parametrize("status, requests", [(404, 1), (503, 3)])
def test_refusals(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(UserError, match=f"HTTP Error {status}") as caught:
        fetch(server.url, tmp_path / "file.bin", progress=False)
    assert len(server.ranges) == requests and "\n" not in str(caught.value)


def test_offline_is_one_line(server, tmp_path):
    with pytest.raises(UserError, match="could not fetch http://127.0.0.1:9/a.pt .*refused.*put the file at") as caught:
        fetch("http://127.0.0.1:9/a.pt", tmp_path / "a.pt", progress=False)
    assert "\n" not in str(caught.value)


def test_an_address_as_source_is_fetched_to_no_lasting_place():
    with pytest.raises(UserError, match="could not fetch .*: try again, or fetch it by other means and give the file$"):
        list(open_source("http://127.0.0.1:9/a.jpg"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_address_given_to_a_flag_is_downloaded_to_the_current_folder(server, here, capsys):
    address = server.url.replace("file.bin", "some/my%20weights.pt?download=1")
    for _ in range(2):
        assert fetch_typed({"weights": address, "name": address}) == {"weights": "my weights.pt", "name": address}
    assert fetch_typed({"weights": ["a.pt", address]}) == {"weights": ["a.pt", "my weights.pt"]}
    assert (here / "my weights.pt").read_bytes() == PAYLOAD
    assert server.ranges == [None] and capsys.readouterr().out.count("exists already, not downloaded again") == 2
    for text in ("a.pt", "http", "ftp://host/a.pt", ""):
        assert fetch_typed({"weights": text}) == {"weights": text}


@pytest.mark.parametrize(
    "flag, ending",
    [
        ("weights", ""),
        ("weights", "/"),
        ("weights", "/a/"),
        ("weights", "/.."),
        ("weights", "/a/%2e%2e"),
        ("weights", "/a%2f"),
        ("weights", "/a.onnx"),
        ("weights", "/a.yaml"),
        ("data", "/a.zip"),
        ("hyp", "/a.pt"),
        ("cfg", "/tqdm.py"),
    ],
)
def test_other_kinds_of_files_are_not_even_requested(server, here, flag, ending):
    with pytest.raises(UserError, match=f"--{flag} http.*: the address of a .* file is needed"):
        fetch_typed({flag: server.url.removesuffix("/file.bin") + ending})
    assert server.ranges == [] and not list(here.iterdir())


@pytest.mark.parametrize(
    "address",
    [
        "http://[bad/a.pt",
        "http://127.0.0.1:9/" + "a" * 300 + ".pt",
        "http://./a.pt",
        "http://" + "a" * 64 + ".example/a.pt",
        "http://127.0.0.1:port/a.pt",
    ],
)
def test_odd_addresses_are_one_line(here, address):
    with pytest.raises(UserError) as wrong:
        fetch_typed({"weights": address})
    assert "\n" not in str(wrong.value) and not list(here.iterdir())


def test_letters_of_any_script_in_an_address(server, here):
    address = server.url.replace("file.bin", "m\u00e4nner 1.yaml")
    assert fetch_typed({"data": address}) == {"data": "m\u00e4nner 1.yaml"} and server.ranges == [None]


def test_two_addresses_that_end_alike_are_not_mixed(server, here):
    server.cuts = [1000, 0, 0]
    one, two = (server.url.replace("file.bin", f"{folder}/best.pt") for folder in "ab")
    with pytest.raises(UserError, match="could not fetch"):
        fetch_typed({"weights": one})
    fetch_typed({"weights": two})
    assert server.ranges[-1] is None  # from its beginning
    (here / "best.pt").unlink()
    fetch_typed({"weights": one})
    assert server.ranges[-1] == "bytes=1000-" and [file.name for file in here.iterdir()] == ["best.pt"]


@pytest.mark.parametrize(
    "program, flags",
    [
        (train, ["--data"]),
        (train, ["--cfg"]),
        (train, ["--hyp"]),
        (train, ["--weights"]),
        (train, ["--evolve", "--data"]),
        (val, ["--data"]),
        (val, ["--weights"]),
        (detect, ["--weights"]),
        (detect, ["--data"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__,
)
def test_flags_that_take_an_address(server, here, program, flags):
    """Fail on the content, which is neither YAML nor weights: it was requested and read."""
    name = "file.pt" if flags == ["--weights"] else "file.yaml"
    with pytest.raises(UserError):
        program.main([*flags, server.url.replace("file.bin", name)])
    assert (here / name).read_bytes() == PAYLOAD and server.ranges == [None]


def test_addresses_in_a_checkpoint_are_not_fetched(server, here, monkeypatch, tiny_data, tiny_cfg):
    """The user has not typed them, and their files could be used at the next start."""
    words = ["--imgsz", "64", "--workers", "0", "--device", "cpu", "--noplots", "--project", str(here)]
    train.main(["--data", str(tiny_data), "--cfg", str(tiny_cfg), "--epochs", "1", *words])
    last, before = here / "exp" / "weights" / "last.pt", {file.name for file in here.iterdir()}
    content = read_checkpoint(last)
    for options in (
        {"data": server.url.replace(".bin", ".yaml")},
        {"data": server.url.replace("file.bin", "tqdm.py")},
        {
            "hyp": server.url.replace(".bin", ".yaml"),
            "weights": server.url.replace(".bin", ".pt"),
            "cfg": server.url.replace(".bin", ".yaml"),
        },
    ):
        write_checkpoint(last, {**content, "options": {**content["options"], **options}})
        with suppress(UserError):
            train.main(["--resume", str(last), "--epochs", "2"])
    assert server.ranges == [] and {file.name for file in here.iterdir()} == before


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "a.zip", ""])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="only http"):
        fetch(url, tmp_path / "a")


def test_a_full_disk_is_reported_before_the_transfer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: _Usage(free=1000))
    with pytest.raises(UserError, match="has too little space"):
        fetch(server.url, tmp_path / "file.bin", progress=False)


class _Usage:
    def __init__(self, free: int):
        self.free = free


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def make_tar(path, entries, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ENTRIES = [
    ("set/images/a.jpg", b"image"), ("set/labels/a.txt", b"0 .5 .5 1 1"), ("set/ä b..c.txt", b""),
    ("__MACOSX/set/._a.jpg", b"junk"), ("set/.DS_Store", b"junk"), ("./top.txt", b"top"),
]  # fmt: skip
WANTED = {"set/images/a.jpg": b"image", "set/labels/a.txt": b"0 .5 .5 1 1", "set/ä b..c.txt": b"", "top.txt": b"top"}


def test_what_a_killed_process_left_of_an_archive_is_removed(tmp_path, leave_behind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/a.txt", "a")
    leave_behind(tmp_path / "data" / "unpack", folder=True)
    unpack(tmp_path / "a.zip", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["images"]


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_archives_unpack(tmp_path, kind):
    make = make_zip if kind == "zip" else lambda path, entries: make_tar(path, entries, kind)
    archive = make(tmp_path / "archive", ENTRIES)
    out = tmp_path / "out"
    (out / "set").mkdir(parents=True)
    (out / "set" / "mine.txt").write_bytes(b"mine")
    (out / "top.txt").write_bytes(b"old")
    assert unpack(archive, out, own="set") == out
    assert tree(out) == {**WANTED, "set/mine.txt": b"mine", "top.txt": b"old"}
    assert sorted(path.name for path in out.iterdir()) == ["set", "top.txt"]  # nothing temporary left


def test_archives_of_one_data_set_are_one(tmp_path):
    archives = [make_zip(tmp_path / f"{name}.zip", [(f"set/{name}/1", b"x")]) for name in ("images", "labels")]
    unpack(archives, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"set/images/1", "set/labels/1"}


@pytest.mark.parametrize("name", ["mine/a.txt", "mine/new.txt", "mine/images/new.jpg"])
def test_other_data_is_never_changed(tmp_path, name):
    """Neither by a file that takes another's place nor by one beside it."""
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    (out / "mine" / "a.txt").write_bytes(b"mine")
    archive = make_zip(tmp_path / "archive", [("set/a.txt", b"theirs"), (name, b"theirs")])
    if name == "mine/a.txt":
        unpack(archive, out, own="set")
    else:
        with pytest.raises(UserError, match="the archive holds mine, but .*mine exists: move that away"):
            unpack(archive, out, own="set")
    assert tree(out / "mine") == {"a.txt": b"mine"}


@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt", "\\\\host\\evil"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_members_that_escape_are_refused(tmp_path, name, make):
    archive = make(tmp_path / "archive", [("good.txt", b"good"), (name, b"evil")])
    with pytest.raises(UserError, match="outside the folder"):
        unpack(archive, tmp_path / "a" / "b")
    assert tree(tmp_path).keys() == {"archive"}  # the good member is not written either


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tars_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(UserError, match="link or a device"):
        unpack(make_tar(tmp_path / "archive", [(info, b"")]), tmp_path / "out")


def test_links_in_zips_are_refused(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(UserError, match="link or a device"):
        unpack(make_zip(tmp_path / "archive", [(info, "/etc/passwd")]), tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch, make):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: _Usage(free=10**6))
    archive = make(tmp_path / "archive", [(f"{n}.bin", bytes(600_000)) for n in range(2)])
    assert archive.stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to 1 MB, but .* has 1 MB free"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:xz"])
def test_damaged_archives_leave_nothing_behind(tmp_path, kind):
    make = make_zip if kind == "zip" else lambda path, entries: make_tar(path, entries, kind)
    archive = make(tmp_path / "archive", [("a.bin", os.urandom(50_000)), ("b.bin", os.urandom(50_000))])
    content = bytearray(archive.read_bytes())
    if kind == "zip":
        content[60_000] ^= 0xFF  # a flipped bit in b.bin; the directory at the end is whole
    else:
        content = content[:70_000]
    archive.write_bytes(content)
    with pytest.raises(UserError, match="archive"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_archive_is_named(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_an_absent_archive_is_named(tmp_path):
    with pytest.raises(UserError, match="a.zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
