"""utils/console.py: what goes to which stream, on which rank, with --quiet, and with or without a terminal."""

import io
import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from utils import console
from utils.files import ROOT


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def connect_terminal(monkeypatch) -> Terminal:
    """Connect stdout and stderr to a terminal. Call it in the test itself, since pytest sets both before each phase."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def write_all() -> None:
    console.info()
    console.info("info", "second line")
    console.result("result")
    console.warn("something. Type this")
    console.error("error: wrong")


@pytest.mark.parametrize(
    "quiet, rank, out, err",
    [
        (False, 0, "info\nsecond line\nresult\n", "WARNING: something. Type this\nerror: wrong\n"),
        (True, 0, "result\n", "WARNING: something. Type this\nerror: wrong\n"),
        (False, 1, "", "[rank 1] error: wrong\n"),
        (True, 2, "", "[rank 2] error: wrong\n"),
    ],
)
def test_streams(capsys, quiet, rank, out, err):
    console.begin_program(quiet=quiet)
    with console.as_rank(rank):
        write_all()
    assert capsys.readouterr() == (out, err)
    console.result("rank 0 again")
    assert capsys.readouterr().out == "rank 0 again\n"


def test_output_of_other_libraries_on_other_ranks(capsys):
    with console.as_rank(3):
        print("a hundred lines")
        print("two\nlines", file=sys.stderr)
        print("unfin", end="", file=sys.stderr)
        print("ished", file=sys.stderr)
    assert capsys.readouterr() == ("", "[rank 3] two\n[rank 3] lines\n[rank 3] unfinished\n")


def test_the_rank_is_restored_after_an_error(capsys):
    with pytest.raises(KeyError), console.as_rank(1):
        raise KeyError
    console.info("rank 0")
    assert capsys.readouterr().out == "rank 0\n"


def test_warning_about_the_data_of_a_rank_appears_on_it(capsys):
    with console.as_rank(1):
        console.warn("elsewhere")
        console.warn("here", all_ranks=True)
    assert capsys.readouterr() == ("", "[rank 1] WARNING: here\n")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_child_process_warns_without_the_lock_of_the_bars(capfd, monkeypatch):
    """A data worker may be killed at any moment. If it held the lock, the bars of the main process would stop."""
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    monkeypatch.setattr(console.tqdm, "external_write_mode", None)
    child = multiprocessing.get_context("fork").Process(target=console.warn, args=("in a worker",))
    child.start()
    child.join()
    assert child.exitcode == 0 and capfd.readouterr().err == "WARNING: in a worker\n"


def test_a_warning_is_printed_once_per_program(capsys):
    for text in ("a", "b", "a", "a"):
        console.warn(text)
    assert capsys.readouterr().err == "WARNING: a\nWARNING: b\n"
    console.begin_program()
    console.warn("a")
    assert capsys.readouterr().err == "WARNING: a\n"


def test_each_line_reaches_the_log_at_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))  # buffered, as in a batch system
    console.info("now")
    assert sys.stdout.buffer.getvalue() == b"now\n"


# ---- bars


def test_a_bar_in_a_terminal(monkeypatch):
    terminal = connect_terminal(monkeypatch)
    with console.progress_bar(range(3), desc="scan", unit="image") as bar:
        for _ in bar:
            pass
    assert "scan: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue() and "image/s" in terminal.getvalue()


def test_lines_are_printed_above_the_bar(monkeypatch):
    terminal = connect_terminal(monkeypatch)
    with console.progress_bar(total=2, desc="scan") as bar:
        bar.update()
        console.info("a line")
        console.warn("careful")
        bar.update()
    written = terminal.getvalue()
    assert "\ra line\n" in written and "\rWARNING: careful\n" in written  # the bar is erased first
    assert written.rindex("scan: 100%") > written.index("careful")


def test_no_bar_goes_to_stdout(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(console.progress_bar(range(3)))
    assert capsys.readouterr().out == "" and "3/3" in sys.stderr.getvalue()


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"desc": "scan"}, "scan\n"),
        ({"desc": "scan", "unit": "image"}, "scan: 3 images\n"),
        ({"desc": "x.pt", "unit": "B", "initial": 1_499_997, "unit_scale": True}, "x.pt: 1.50MB\n"),
        ({"desc": "scan", "leave": False}, ""),
        ({"desc": "scan", "disable": True}, ""),
    ],
)
def test_without_a_terminal_a_full_bar_is_a_line(capsys, settings, line):
    assert list(console.progress_bar(range(3), **settings)) == [0, 1, 2]
    assert capsys.readouterr() == (line, "")


def test_without_a_terminal_the_last_description_is_the_line(capsys):
    bar = console.progress_bar(total=3, initial=1, desc="begun")
    assert not bar.update()
    bar.set_description_str("epoch 0: loss 3")
    bar.update()
    assert capsys.readouterr().out == ""  # not before it is closed
    bar.close()
    bar.close()
    assert capsys.readouterr() == ("epoch 0: loss 3\n", "")


def test_without_a_terminal_a_bar_that_is_not_full_is_silent(capsys):
    with suppress(KeyError), console.progress_bar(range(3), desc="scan") as bar:
        for _ in bar:
            raise KeyError
    del bar
    console.progress_bar(total=0, desc="dropped")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet, rank", [(True, 0), (False, 1)])
def test_neither_quiet_programs_nor_other_ranks_have_bars(monkeypatch, quiet, rank):
    terminal = connect_terminal(monkeypatch)
    console.begin_program(quiet=quiet)
    with console.as_rank(rank):
        assert not console.shows_bars()
        list(console.progress_bar(range(3), desc="scan"))
    assert terminal.getvalue() == ""


# ---- streams that are gone

WRITE = "from utils import console; console.info('one'); console.warn('two'); list(console.progress_bar(range(2)))"


def run_in_shell(command: str) -> subprocess.CompletedProcess:
    """Run a command in which $0 is Python, with Python's own buffering."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = ["sh", "-c", command, sys.executable]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "closed, out, err",
    [("<&-", "one\n", "WARNING: two\n"), (">&-", "", "WARNING: two\n"), ("2>&-", "one\n", ""), (">&- 2>&-", "", "")],
)
def test_streams_closed_by_the_shell(closed, out, err):
    done = run_in_shell(f'"$0" -c "{WRITE}" {closed}')
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1"])
def test_a_log_on_a_full_disk_does_not_end_a_program(redirection):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = run_in_shell(f'"$0" -c "{WRITE}; console.warn(str(3))" {redirection}')
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict", "utf-8:strict"])
def test_letters_that_the_console_cannot_encode_are_escaped(encoding):
    code = "from utils import console; console.info('caf\\udce9 \\u732b'); console.warn('\\udce9')"
    done = run_in_shell(f'PYTHONIOENCODING={encoding} "$0" -c "{code}"')
    assert done.returncode == 0 and done.stdout.startswith("caf\\udce9 ") and "\\udce9" in done.stderr


def test_a_reader_that_has_gone_does_not_end_a_run_at_its_next_line():
    code = "import time; time.sleep(0.5); console.info('late'); console.info('later'); console.error('went on')"
    done = run_in_shell(f'"$0" -c "{WRITE}; {code}" | head -n 1')
    assert done.stdout == "one\n" and "went on\n" in done.stderr and "Traceback" not in done.stderr


def test_a_terminal_obeys_no_text(capsys):
    console.begin_program()
    console.info("\n\x1b[2Ja\nb\tc", "caf\udce9", "\u202egpj")
    assert capsys.readouterr().out == "\n\\x1b[2Ja\\nb\tc\ncaf\\udce9\n\\u202egpj\n"
