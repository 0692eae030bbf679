"""Run folders get their own numbers, files are whole or absent, and broken YAML is named by line."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from utils.errors import UserError, explain
from utils.files import (
    SMALL_BYTES,
    append_line,
    atomic_write,
    find_file,
    free_path,
    increment_path,
    open_regular,
    read_regular,
    read_yaml,
    retry_reading,
    write_yaml,
)


def test_run_folders_are_numbered_and_gaps_reused(tmp_path):
    made = [increment_path(tmp_path / "exp").name for _ in range(3)]
    assert made == ["exp", "exp2", "exp3"]
    (tmp_path / "exp2").rmdir()
    assert increment_path(tmp_path / "exp").name == "exp2"
    assert increment_path(tmp_path / "exp", exist_ok=True).name == "exp"


@pytest.mark.parametrize("exist_ok", [False, True])
@pytest.mark.parametrize("make", [Path.touch, lambda file: file.symlink_to("nowhere")], ids=["file", "dangling link"])
def test_a_project_that_is_no_folder_is_one_line(tmp_path, make, exist_ok):
    make(tmp_path / "project")
    with pytest.raises(UserError, match="cannot create the folder .*exp: .*give another --project"):
        increment_path(tmp_path / "project" / "exp", exist_ok)


def test_a_file_is_no_existing_folder(tmp_path):
    (tmp_path / "exp").touch()
    with pytest.raises(UserError, match="cannot create the folder .*exp: "):
        increment_path(tmp_path / "exp", exist_ok=True)
    assert increment_path(tmp_path / "exp").name == "exp2"


def test_runs_started_together_get_different_folders(tmp_path):
    made, start = [], threading.Barrier(8)

    def begin():
        start.wait()
        made.append(increment_path(tmp_path / "exp").name)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(set(made)) == 8


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, SMALL_BYTES + 5000])
def test_all_of_a_file_is_read_and_no_more_than_the_limit(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "data").write_bytes(data)
    with open_regular(tmp_path / "data", size) as file:
        assert file.read() == data == read_regular(tmp_path / "data", size)
    for read in (open_regular, read_regular) if size else ():
        with pytest.raises(OSError, match="more than 0 MiB"):
            read(tmp_path / "data", size - 1)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what is open by /proc")
def test_nothing_stays_open(tmp_path):
    (tmp_path / "data").write_bytes(b"some")
    before = len(os.listdir("/proc/self/fd"))
    for path, limit in ((tmp_path / "data", 9), (tmp_path / "data", 1), (tmp_path, 9), (tmp_path / "none", 9)) * 5:
        for read in (open_regular, read_regular):
            with suppress(OSError):
                read(path, limit)
    assert len(os.listdir("/proc/self/fd")) == before


def write_half(file: Path) -> None:
    with atomic_write(file) as stream:
        stream.write(b"half of the new")
        raise RuntimeError("power cut")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "state"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        write_half(file)
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]
    with atomic_write(file) as stream:
        stream.write(b"new")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["state"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX access rights")
@pytest.mark.parametrize("umask, rights", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_new_files_get_the_rights_that_the_umask_grants(tmp_path, umask, rights, monkeypatch):
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:  # the umask belongs to the whole process
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
            with atomic_write(tmp_path / "state") as stream:
                stream.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == rights


def test_files_are_found_as_typed_then_in_the_folders(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.yaml").write_text("a: 1")
    assert find_file("x.yaml", tmp_path / "absent", tmp_path / "one") == tmp_path / "one/x.yaml"
    assert find_file(tmp_path / "one/x.yaml") == tmp_path / "one/x.yaml"
    assert find_file("y.yaml", tmp_path / "one") is None


def test_yaml_keeps_order_and_text(tmp_path):
    content = {"z": 1, "a": "größe", "path": "x y"}
    write_yaml(tmp_path / "o.yaml", content)
    assert list(read_yaml(tmp_path / "o.yaml").items()) == list(content.items())


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: [1, 2\n", r":3: "),  # a bracket that never closes, seen at the end
        ("- a\n", "found list"),
        ("", "found NoneType"),
        ("a: !!python/object/apply:os.system ['touch hacked']\n", "could not determine a constructor"),
        ("a: &a [x]\nb: *c\n", "undefined alias"),
        ("lr0: 1\nbox: 2\nlr0: 3\n", ":3: the key 'lr0' occurs twice"),
        ("names: {0: cat, 0: dog}\n", ":1: the key '0' occurs twice"),  # a class would be lost
        ("names: {7: cat, 07: dog}\n", "the key '07' occurs twice"),  # the same number
    ],
)
def test_broken_yaml_is_one_clear_error(tmp_path, text, message):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as wrong:
        read_yaml(file)
    assert str(file) in str(wrong.value) and "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    "typed, names",
    [
        ("[012, 1:30, 1.10, no, on, 1e3, 2024-01-02]", ["012", "1:30", "1.10", "no", "on", "1e3", "2024-01-02"]),
        ("{0: 007, 1: 0x1F}", {0: "007", 1: "0x1F"}),
        ("[~, null, '', cat]", [None, None, "", "cat"]),  # no name: the reader of data sets refuses it
    ],
)
def test_class_names_are_read_as_typed(tmp_path, typed, names):
    (tmp_path / "data.yaml").write_text(f"nc: 012\nnames: {typed}\n")
    assert read_yaml(tmp_path / "data.yaml") == {"nc": 10, "names": names}


@pytest.mark.parametrize(
    "text, encoding, names",
    [
        ("names: [Käfer]", "utf-8-sig", ["Käfer"]),
        ("names: [Käfer]", "utf-16", ["Käfer"]),
        ("# größer\nnames: [a]", "latin-1", ["a"]),  # only a comment loses a letter
        ("a: 1\nnames: [Käfer]", "latin-1", None),
        ("a: 1\nnames: [猫, 狗]", "gbk", None),
        ("a: 1\nnames: [\u201cA\u201d]", "cp1252", None),
    ],
)
def test_yaml_in_another_encoding_loses_no_letter(tmp_path, text, encoding, names):
    (tmp_path / "data.yaml").write_bytes(text.encode(encoding))
    if names:
        assert read_yaml(tmp_path / "data.yaml")["names"] == names
        return
    with pytest.raises(UserError, match="data.yaml:2: not UTF-8 text. Save the file in the encoding UTF-8"):
        read_yaml(tmp_path / "data.yaml")


def test_short_reads_are_read_on(tmp_path, monkeypatch):
    """Network file systems may give less than requested."""
    (tmp_path / "file").write_bytes(bytes(range(200)))
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 7)))
    assert read_regular(tmp_path / "file", 1000) == bytes(range(200))
    with open_regular(tmp_path / "file", 1000) as file:
        assert file.read() == bytes(range(200))


@pytest.mark.parametrize(
    "number, tries",
    [(errno.EIO, 3), (errno.EMFILE, 3), (errno.ESTALE, 3), (errno.ENOENT, 1), (errno.EFBIG, 1), (errno.EACCES, 1)],
)
def test_errors_that_may_pass_are_retried(monkeypatch, number, tries):
    monkeypatch.setattr("utils.files.RETRY_DELAYS", (0, 0))
    calls = []

    def read() -> bytes:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(number, "no luck")
        return b"content"

    if tries == 3:
        assert retry_reading(read) == b"content"
    else:
        with pytest.raises(OSError, match="no luck"):
            retry_reading(read)
    assert len(calls) == tries


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("write", [lambda path: write_yaml(path, {"a": 1}), lambda path: append_line(path, "a")])
def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch, write):
    """Python names none in an error of write() or fsync(), and a temporary file says nothing to a user."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.yaml").touch()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device") as error:
        write(tmp_path / "a.yaml")
    assert explain(error.value) == (f"error: {tmp_path}/a.yaml: No space left on device; choose another folder", 1)
    assert explain(OSError(errno.ENOSPC, "No space left")) == ("error: No space left", 1)


def test_a_name_too_long_for_the_system_is_one_line():
    with pytest.raises(OSError, match="too long") as error:
        Path("a" * 5000).stat()
    line, code = explain(error.value)
    assert line.startswith("error: aaaa") and line.endswith("File name too long; give a shorter one") and code == 1
    assert len(line) < 1200


@pytest.mark.parametrize(
    "before, line, after",
    [(b"", "a\n", b"a\n"), (b"a\n", "b\nc\n", b"a\nb\nc\n"), (b"a\ncut", "b\n", b"a\ncut\nb\n")],
    ids=["empty", "whole", "cut off by a power cut"],
)
def test_lines_are_appended_wholly_or_not_at_all(tmp_path, monkeypatch, before, line, after):
    (tmp_path / "a").write_bytes(before)
    append_line(tmp_path / "a", line)
    assert (tmp_path / "a").read_bytes() == after

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_line(tmp_path / "a", line)
    assert (tmp_path / "a").read_bytes() == after


def test_a_free_path_is_the_next_folder_and_makes_none(tmp_path):
    for _ in range(3):
        expected = free_path(tmp_path / "exp")
        assert not expected.exists() and increment_path(tmp_path / "exp") == expected
    assert expected.name == "exp3" and free_path(tmp_path / "exp", exist_ok=True) == tmp_path / "exp"
