"""What the inference benchmark compares with what: full-precision references, and the bars it is held to."""
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from vvq_mm.export.packed import load
from vvq_mm.export.sizes import size_report

from .float_reference import FloatFiles
from .inference import Measured
from .inference_rows import FP32, OURS, Row
from .measure import Timing

ANY = 'any runtime'
# start of the architecture's name -> (runtime, batch size, highest ratio of ours to full precision), at one thread
BARS = {
    'deit-tiny': [('ONNX Runtime', 8, 0.65), ('OpenVINO', 8, 0.57), (ANY, 1, 0.62), (ANY, 8, 0.57)],
    'deit-small': [('OpenVINO', 8, 0.43)],
}
MOST_OVERHEAD = 1.02  # of a packed file over its theoretical size
# start of the architecture's name -> (kind of file, bits of most weights, highest ratio of its size to full precision)
SIZE_BARS = {'deit-tiny': [('onnx', 4, 0.20)], 'deit-base': [('packed', 2, 0.075)]}
BAR_SHAPE = [3, 224, 224]  # of the images that the bars were set for


def fastest(rows: Sequence[Row], timings: Dict[str, Timing], group: str, runtime: str = ANY) -> Optional[str]:
    """Return the name of the fastest row of a group that ran, or None.

    Args:
        rows (sequence of Row): all rows.
        timings (dict): name -> Timing at one batch size.
        group (str): ``FP32``, ``BF16`` or ``ours``.
        runtime (str): of the row. Defaults to any.
    """
    names = [row.name for row in rows
             if row.group == group and runtime in (ANY, row.runtime) and row.name in timings]
    return min(names, key=lambda name: timings[name].median, default=None)


def judge(rows: Sequence[Row], measured: Measured, description: dict) -> List[dict]:
    """Return the bars that the rows at hand decide: ``what``, ``measured``, ``bound``, ``limit`` and whether ``met``.

    A row of ours none of whose products ran on integers is not counted. The integer engine counts for any runtime, and
    for none in particular.

    Args:
        rows (sequence of Row): all rows.
        measured (Measured): at one thread.
        description (dict): of the exported model; other models and image sizes have no bars.
    """
    results = []
    integer = [row for row in rows if row.group != OURS or (measured.integer.get(row.name) or [0])[0]]
    for runtime, size, limit in _bars_of(description, BARS):
        timings = measured.timings.get(size, {})
        own, reference = (fastest(integer, timings, group, runtime) for group in (OURS, FP32))
        if own and reference:
            ratio = timings[own].over(timings[reference]).median
            results.append(dict(what=f'batch {size}: {own} / {reference}' + ' (fastest of all)' * (runtime == ANY),
                                measured=ratio, bound='at most', limit=limit, met=ratio <= limit))
    return results


def judge_sizes(packed: Sequence[Path], onnx: Sequence[Path], floats: FloatFiles, description: dict) -> List[dict]:
    """Return the sizes of exported files over what they are compared with, in the form of :func:`judge`.

    Args:
        packed (sequence of Path): over their theoretical size, and over the full-precision checkpoint.
        onnx (sequence of Path): over the full-precision ONNX file.
        floats (FloatFiles): the full-precision network.
        description (dict): of the exported model.
    """
    found = []
    for path in packed:
        sizes = size_report(load(path))
        bits = max(sizes['widths'], key=sizes['widths'].get)
        found.append((f'{path.name} / theory ({sizes["theory"]:,} bytes)', 'theory', bits, path, sizes['theory']))
        found.append((f'{path.name} / FP32 checkpoint', 'packed', bits, path, floats.checkpoint.stat().st_size))
    for path in onnx if floats.onnx else ():
        bits = found[0][2] if found else None
        reference = floats.onnx[max(floats.onnx)]
        found.append((f'{path.name} / FP32 ONNX', 'onnx', bits, path, reference.stat().st_size))
    limits = {('theory', bits): MOST_OVERHEAD for _, _, bits, *_ in found}
    limits.update({(kind, str(bits)): limit for kind, bits, limit in _bars_of(description, SIZE_BARS)})
    results = []
    for what, kind, bits, path, reference in found:
        ratio, limit = path.stat().st_size / reference, limits.get((kind, bits))
        results.append(dict(what=f'size of {what}', measured=ratio, bound='at most', limit=limit,
                            met=None if limit is None else ratio <= limit))
    return results


def _bars_of(description: dict, table: dict) -> list:
    """Return the entry of a table of bars for the model of a description."""
    model = description['model']
    arch = (model.get('backbone') or {}).get('arch') or model.get('model_name') or ''
    name = str(arch).lower().replace('_', '-')
    bars = next((bars for start, bars in table.items() if name.startswith(start)), [])
    return bars if list(description['input_shape']) == BAR_SHAPE else []
