"""The table of findings on the console: with none, with one of each level, with many."""

from pathlib import Path

from utils.checking.console_table import findings_table, summary
from utils.checking.findings import Example, Finding


def make(level, count=1, examples=(), split="train"):
    return Finding(level, "files", f"a-{level}", count, "files are wrong", "Correct them.", split, tuple(examples))


def test_no_finding_is_no_line():
    assert findings_table([]) == []
    assert summary([]) == "0 errors, 0 warnings, 0 notes"


def test_a_finding_has_a_line_its_first_examples_and_what_to_do():
    examples = [Example("a.txt", 3, "why"), Example("b.txt"), Example("c.txt")]
    findings = [make("error", 7, examples), make("note", 2, examples), make("warning", 1, split="")]
    assert findings_table(findings) == [
        "NOTE    train       2  a-note: files are wrong",
        "\nWARNING all         1  a-warning: files are wrong",
        "    -> Correct them.",
        "\nERROR   train       7  a-error: files are wrong",
        "    a.txt:3  why",
        "    b.txt  ... 5 more",
        "    -> Correct them.",
    ]
    assert summary(findings) == "1 error, 1 warning, 1 note"


def test_many_findings_stay_short():
    examples = [Example(f"{k}.txt", detail="x" * 500) for k in range(100)]
    lines = findings_table([make("error", 1000, examples)] * 20 + [make("note", 5, examples)] * 20)
    assert len(lines) == 20 + 20 * 4 and max(map(len, lines)) < 160


def test_paths_are_shown_as_seen_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = f"{Path.cwd()}/a.txt", f"{tmp_path.parent}/b.txt"
    lines = findings_table([make("error", 2, [Example(inside), Example(outside)])])
    assert lines[1:3] == ["    a.txt", f"    {outside}"]
