"""What the pictures have in common: colours, axes, and writing a PNG file."""
from pathlib import Path
from typing import Union

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, GREY, PALE = '#1c2733', '#6b7885', '#d9dee3'
MAIN, SECOND, WARM = '#0b5fa5', '#6fa8d6', '#d1495b'
COLORS = [GREY, MAIN, WARM, SECOND, '#e3a72f', '#7a5195', '#2a9d8f']


def percent(value: float, position: int = 0) -> str:
    """Return a share as text; a formatter of matplotlib."""
    return f'{100 * value:g}%'


def style(axis: Axes, label: str, ticks: int = 3) -> None:
    """Leave two thin axes and a pale grid."""
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(PALE)
    axis.tick_params(colors=GREY, labelsize=9, length=3)
    axis.yaxis.set_major_locator(MaxNLocator(ticks))
    axis.grid(axis='y', color=PALE, lw=0.6)
    axis.set_axisbelow(True)
    if label:
        axis.set_ylabel(label, color=INK)


def save(figure: Figure, path: Union[str, Path]) -> None:
    """Write the picture; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor='white')
