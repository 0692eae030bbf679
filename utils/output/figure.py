"""Matplotlib figures as plain objects: no pyplot, no global state, so that a background thread may draw."""

from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import atomic_write
from utils.output.fonts import choose_font

if TYPE_CHECKING:  # importing matplotlib takes half a second, and only drawing needs it
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", file: str | Path, *, dpi: int, pad: float = 0.1) -> None:
    """Write the figure in the format of the file's suffix, with `pad` inches around each panel."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    _use_fonts(figure)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=pad, h_pad=pad)
    with atomic_write(file) as stream:
        figure.savefig(stream, format=Path(file).suffix.lstrip(".").lower(), dpi=dpi)


def _use_fonts(figure: "Figure") -> None:
    """Switch texts with letters that DejaVu Sans, matplotlib's own font, lacks to a font that has them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().isascii():
            font = text.get_fontproperties().copy()
            font.set_file(choose_font(text.get_text()).file)
            text.set_fontproperties(font)
