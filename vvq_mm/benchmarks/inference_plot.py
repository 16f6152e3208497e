"""The inference benchmark as a picture: size of the file against latency, with the accuracy beside each point."""
from pathlib import Path
from typing import List, Union

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from vvq_mm.plots.style import COLORS, GREY, INK, PALE, save

from .inference_report import MB, settings_of
from .inference_rows import BF16, FP32, OURS

GROUP_COLORS = {FP32: COLORS[0], BF16: COLORS[4], OURS: COLORS[1]}
MARKERS = {'PyTorch': 'o', 'ONNX Runtime': 's', 'OpenVINO': 'D'}
# where a label may go, in points from its marker: (x, y, horizontal alignment); the first free place is taken
NEAR = 9
LINE = [step / 20 for step in range(1, 20)]  # places on the line to a far label that must be free
PLACES = [(0, side * NEAR, align) for align in ('center', 'left', 'right') for side in (1, -1)]
PLACES += sorted([(x, side * y, 'center') for y in range(22, 90, 11) for x in range(-120, 121, 20) for side in (1, -1)],
                 key=lambda place: abs(place[0]) + 2 * abs(place[1]))


def plot_inference(results: List[dict], path: Union[str, Path], title: str = 'Size and latency of inference',
                   subtitle: str = '') -> None:
    """Draw a panel per batch size at the first number of threads; of each runtime and group the fastest row.

    Args:
        results (list of dict): of :func:`vvq_mm.benchmarks.inference_report.make_results`.
        path (str | Path): PNG file to write; its folder is made.
        title (str): above the picture.
        subtitle (str): model and machine; one line under the title. Defaults to none.
    """
    panels = [panel for panel in settings_of(results) if panel[1][0]['threads'] == results[0]['threads']]
    figure = Figure(figsize=(1 + 6.2 * len(panels), 5.6), dpi=160, layout='constrained')
    figure.suptitle(f'{title}\n', x=0.01, ha='left', color=INK, fontsize=13, weight='bold')
    figure.text(0.01, 0.925, subtitle, color=GREY, fontsize=9, va='bottom')
    for axis, (name, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _draw(axis, _fastest(part), name)
    handles = [Line2D([], [], color=color, marker='o', ls='', label=group) for group, color in GROUP_COLORS.items()]
    handles += [Line2D([], [], color=INK, marker=mark, ls='', mfc='none', label=name) for name, mark in MARKERS.items()]
    figure.legend(handles=handles, loc='outside lower left', ncols=6, frameon=False, fontsize=8.5, labelcolor=INK)
    save(figure, path)


def _fastest(part: List[dict]) -> List[dict]:
    """Return the fastest result of each runtime and group, and of each file of ours, so that labels find a place."""
    best = {}
    for result in sorted(part, key=lambda result: result['seconds']['median']):
        best.setdefault((result['runtime'], result['group'], result['group'] == OURS and result['name']), result)
    return list(best.values())


def _draw(axis: Axes, part: List[dict], name: str) -> None:
    """Draw one panel."""
    times, sizes = ([result[key] / unit if key else 1000 * result['seconds']['median'] for result in part]
                    for key, unit in ((None, 1), ('file_bytes', MB)))
    axis.set(xscale='log', yscale='log', xlim=(min(times) / 1.6, max(times) * 1.6),
             ylim=(min(sizes) / 2.5, max(sizes) * 2.5))
    for result, x, y in zip(part, times, sizes):
        axis.plot(x, y, MARKERS[result['runtime']], ms=8, color=GROUP_COLORS[result['group']], mec='white', zorder=3)
    axis.set_title(name, loc='left', color=INK, fontsize=10)
    axis.set_xlabel('latency in ms, median (log)', color=INK, fontsize=9)
    axis.set_ylabel('file in MB (log)', color=INK, fontsize=9)
    axis.grid(color=PALE, lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(PALE)
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(LogLocator(subs=(1, 2, 5)))
        direction.set_major_formatter(FuncFormatter(lambda value, position: f'{value:g}'))
        direction.set_minor_formatter(NullFormatter())
    axis.tick_params(which='both', colors=GREY, labelsize=8.5)
    _label(axis, part, list(zip(times, sizes)))


def _label(axis: Axes, part: List[dict], points: list) -> None:
    """Write name, time and accuracy at each point, in the nearest place that is free, with a line if it is far."""
    canvas = FigureCanvasAgg(axis.figure)
    canvas.draw()  # so that the axes have their size
    inside, dot = axis.get_window_extent(), axis.figure.dpi / 72
    markers = axis.transData.transform(points)
    taken = [Bbox([[x - 6 * dot, y - 6 * dot], [x + 6 * dot, y + 6 * dot]]) for x, y in markers]
    for result, point, (left, bottom) in sorted(zip(part, points, markers), key=lambda item: item[1]):
        for x, y, align in PLACES:
            note = axis.annotate(_words(result), point, (x, y), textcoords='offset points', ha=align, fontsize=8,
                                 va='bottom' if y > 0 else 'top', color=INK, zorder=4, in_layout=False)
            boxes = [note.get_window_extent(canvas.get_renderer())]
            line = [(left + share * x * dot, bottom + share * y * dot) for share in LINE
                    if abs(y) > NEAR and share * max(abs(x), abs(y)) > NEAR]
            boxes += [Bbox([[x0 - 1, y0 - 1], [x0 + 1, y0 + 1]]) for x0, y0 in line]
            (x0, y0), (x1, y1) = boxes[0].min, boxes[0].max
            if inside.contains(x0, y0) and inside.contains(x1, y1) and not any(
                    box.overlaps(other) for box in boxes for other in taken):
                break
            note.remove()
        else:  # no free place: better on top of another label than not there
            axis.add_artist(note)
        taken.extend(boxes)
        if abs(y) > NEAR:
            axis.annotate('', point, (x, y), textcoords='offset points', in_layout=False, annotation_clip=False,
                          arrowprops=dict(arrowstyle='-', color=GREY, lw=0.6))


def _words(result: dict) -> str:
    accuracy = '' if result['accuracy'] is None else f', {result["accuracy"]:.2f} %'
    return f'{result["name"]}\n{1000 * result["seconds"]["median"]:,.1f} ms{accuracy}'
