"""Matplotlib figures as plain objects: no pyplot, no global state, so that a background thread may draw."""

from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import atomic_write
from utils.output.fonts import choose_font

if TYPE_CHECKING:  # the import takes half a second, and only drawing needs it
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty one, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", file: str | Path, *, dpi: int, pad: float = 0.1) -> None:
    _use_fonts(figure)
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    with atomic_write(file) as stream:
        figure.savefig(stream, format=Path(file).suffix.lstrip(".").lower(), dpi=dpi)


def _use_fonts(figure: "Figure") -> None:
    """Names that DejaVu Sans, matplotlib's own font, lacks letters of are drawn with another that has them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            font = text.get_fontproperties().copy()
            font.set_file(choose_font(text.get_text()).file)
            text.set_fontproperties(font)
