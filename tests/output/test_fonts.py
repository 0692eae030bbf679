"""Fonts: letters of any script are drawn if a font has them."""

import os
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from utils.output import drawing, fonts
from utils.output.fonts import NO_GLYPH


def test_letters_beyond_ascii_are_drawn():
    masks = [drawing._text_mask(text, 20) for text in ("Straße", "Strase", "кошка", "ñ")]
    assert all(mask.max() > 0.9 for mask in masks)
    missing = drawing._text_mask("\uffff", 20)
    assert not any(mask.shape == missing.shape and np.array_equal(mask, missing) for mask in masks)


def test_without_matplotlib_another_font_draws(fresh_fonts, monkeypatch):
    assert drawing._font(20, fonts.dejavu()).getname()[0] == "DejaVu Sans"
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    assert fonts.choose_font("caf\u00e9").file is None and "DejaVu" not in drawing._font(20, None).getname()[0]
    assert drawing._text_mask("person 0.87", 20).max() > 0.9


@pytest.fixture
def fresh_fonts(monkeypatch):
    """Clear the caches of fonts before and after."""
    remembered = fonts.choose_font, fonts.letters_of, fonts._system_fonts
    monkeypatch.setattr(fonts, "_warned", [])
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def make_font(file: Path, letters: str) -> Path:
    """Write a font in which each of `letters` is a filled square."""
    builder, pen = FontBuilder(1000), TTGlyphPen(None)
    for point in ((100, 0), (100, 700), (800, 700), (800, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(point)
    pen.closePath()
    square, names = pen.glyph(), [f"glyph{i}" for i in range(len(letters))]
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names)})
    builder.setupGlyf({name: square if name != ".notdef" else TTGlyphPen(None).glyph() for name in (".notdef", *names)})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return file


CAT = "\u732b"
HIEROGLYPH = "\U00013000"


def test_letters_beyond_dejavu_are_drawn_by_a_font_of_the_system(fresh_fonts, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    found = [tmp_path / "bad.ttf", tmp_path / "absent.ttf", make_font(tmp_path / "squares.ttf", CAT + " 0.9")]
    monkeypatch.setattr(fonts, "_system_fonts", lambda letters: found)
    for text in ("cat", "\u0416\u00e9"):
        assert fonts.choose_font(text) == (text, fonts.dejavu())
    assert fonts.choose_font(f"a\u200b\ufe0f\n{NO_GLYPH}").file == fonts.dejavu()
    assert fonts.choose_font(f"{CAT} 0.9") == (f"{CAT} 0.9", found[2])
    mask = drawing._text_mask(CAT, 40)
    assert mask.mean() > 0.3 and not capsys.readouterr().err
    assert fonts.choose_font(f"{HIEROGLYPH}e") == (f"{NO_GLYPH}e", fonts.dejavu())
    assert fonts.choose_font(HIEROGLYPH + CAT) == (NO_GLYPH + CAT, found[2])
    assert fonts.choose_font("\U00013001").text == NO_GLYPH
    assert capsys.readouterr().err.count("WARNING: no font here has letters such as \U00013000:") == 1


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for fontconfig")
@pytest.mark.parametrize("answers", [True, False])
def test_fontconfig_is_queried_for_the_letters(fresh_fonts, tmp_path, monkeypatch, answers):
    font, program = make_font(tmp_path / "squares.ttf", CAT), tmp_path / "fc-match"
    program.write_text(
        f"#!/bin/sh\nprintf '%s %s' \"$1\" \"$2\" > '{tmp_path}/query'\n"
        + (f"printf '%s' '{font}'\n" if answers else "exit 1\n")
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(fonts, "KNOWN", [])
    assert fonts.choose_font(f"{CAT}\u72d7 {CAT}") == (
        (f"{CAT}{NO_GLYPH} {CAT}", font) if answers else (f"{NO_GLYPH * 2} {NO_GLYPH}", fonts.dejavu())
    )
    assert (tmp_path / "query").read_text() == "--format=%{file} :charset=72d7 732b"
