"""The tables of a study, from its rows alone."""
from math import isfinite
from statistics import mean, stdev
from typing import Dict, List, Optional, Sequence, Tuple

from scipy import stats

from .compare import CLEAR, LIKELY, Difference, compare, holm, verdict
from .definition import Study

CAPTION = '''\
Top-1 accuracy in % of the last checkpoint on {images}: mean ± sample standard deviation over {seeds}.
Each run is {steps} steps and {crops} crops from the same full-precision model ({full_precision} %). Differences to
the baseline ({baseline}) and to the method that a row extends are paired by seed, in points, ± their standard error; `*` is more than two standard errors from zero, `**` also has a
paired t-test with p < {clear} after Holm's correction for the {count} comparisons of this table. With so few seeds only
large, steady differences can reach that, and a `*` alone comes by chance in {chance} of the comparisons of equal methods.
What has no mark is not shown to differ, and not shown to be equal either.
Training took {seconds} s a run (median), on a machine shared with other work.'''


def make_tables(study: Study, rows: Sequence[dict]) -> str:
    """Return the tables as Markdown: accuracy and differences, then the start and the oscillation.

    Args:
        study (Study): the definition; methods and widths without rows are left out.
        rows (sequence of dict): of its CSV file.
    """
    if not rows:
        return f'No run of {study.name} has ended yet.'
    groups, methods, widths, names = _arrange(study, rows)
    parts = [f'**{study.title}**', '']
    if any(row['last'] for row in rows):
        parts += [*accuracy_table(study, groups, methods, widths, names), '', *_caption(study, rows, groups), '']
    parts += start_table(groups, methods, widths, names)
    return '\n'.join(parts)


def make_summary(study: Study, rows: Sequence[dict]) -> str:
    """Return a small table as Markdown: accuracy per method and width, marked where it differs from the baseline."""
    if not rows:
        return f'No run of {study.name} has ended yet.'
    groups, methods, widths, names = _arrange(study, rows)
    cells = _differences(study, groups, methods, widths)
    lines = _head([study.title, *(f'W{bits.replace("/", "A")}' for bits in widths)])
    for name in methods:
        line = [names[name]]
        for bits in widths:
            mark = cells.get((name, bits, 'baseline'), '').partition('*')
            line.append(f'{spread([row["last"] for row in groups.get((name, bits), {}).values()])} '
                        f'{"".join(mark[1:])}'.strip())
        lines.append(_line(line))
    return '\n'.join(lines)


def _arrange(study: Study, rows: Sequence[dict]) -> Tuple[dict, List[str], List[str], Dict[str, str]]:
    """Return rows by (method, width) and seed, and the methods, widths and titles that there are rows of, in order."""
    groups: Dict[tuple, Dict[str, dict]] = {}
    for row in rows:
        groups.setdefault((row['method'], row['bits']), {})[row['seed']] = row
    methods = [name for name in study.methods if any(name == method for method, _ in groups)]
    widths = sorted({bits for _, bits in groups}, key=lambda bits: [-int(part) for part in bits.split('/')])
    return groups, methods, widths, {name: study.methods[name].title for name in methods}


def accuracy_table(study: Study, groups: dict, methods: List[str], widths: List[str], names: dict) -> List[str]:
    """Return a line per method: accuracy, difference to the baseline, and to the method that it extends."""
    cells = _differences(study, groups, methods, widths)
    heads = [f'W{bits.replace("/", "A")} {what}' for bits in widths for what in ('', '− baseline', '− extended')]
    lines = _head(['method', *map(str.strip, heads)])
    for name in methods:
        line = [names[name]]
        for bits in widths:
            line.append(spread([row['last'] for row in groups.get((name, bits), {}).values()]))
            line += [cells.get((name, bits, other), '') for other in ('baseline', 'extended')]
        lines.append(_line(line))
    return lines


def start_table(groups: dict, methods: List[str], widths: List[str], names: dict) -> List[str]:
    """Return a line per method: accuracy and loss right after calibration, and oscillating weights at the end."""
    trained = any(row['last'] for rows in groups.values() for row in rows.values())
    whats = ('start', 'start loss', 'oscillating')[:3 if trained else 2]
    lines = _head(['method', *(f'W{bits.replace("/", "A")} {what}' for bits in widths for what in whats)])
    for name in methods:
        line = [names[name]]
        for bits in widths:
            rows = groups.get((name, bits), {}).values()
            cells = [spread([row['start'] for row in rows]), spread([row['start_loss'] for row in rows]),
                     spread([row['oscillating'] and 100 * float(row['oscillating']) for row in rows], unit=' %')]
            line += cells[:len(whats)]
        lines.append(_line(line))
    lines += ['', '"Start" is the quantised model right after calibration, before any step: accuracy in % and '
              'cross-entropy of the labels.']
    if trained:
        lines.append('"Oscillating" is the share of the weights of at most 4 bits that oscillate at the end of training.')
    return lines


def spread(values: Sequence, unit: str = '') -> str:
    """Return mean and sample standard deviation as text; what is empty does not count.

    Example:
        >>> spread(['97', '99'])
        '98.00 ± 1.41'
    """
    numbers = [float(value) for value in values if value != '']
    deviation = f' ± {stdev(numbers):.2f}' if len(numbers) > 1 else ''
    return f'{mean(numbers):.2f}{deviation}{unit}' if numbers else ''


def _differences(study: Study, groups: dict, methods: List[str], widths: List[str]) -> Dict[tuple, str]:
    """Return the cells of all comparisons, by method, width, and ``baseline`` or ``extended``."""
    found: Dict[tuple, Optional[Difference]] = {}
    for name in methods:
        for bits in widths:
            for label, other in (('baseline', study.baseline), ('extended', study.methods[name].parent)):
                if other not in (None, name) and not (label == 'extended' and other == study.baseline):
                    found[name, bits, label] = compare(_last(groups, name, bits), _last(groups, other, bits))
    found = {key: value for key, value in found.items() if value is not None}
    adjusted = dict(zip(found, holm([difference.p for difference in found.values()])))
    return {key: _cell(value, verdict(value, adjusted[key])) for key, value in found.items()}


def _last(groups: dict, name: str, bits: str) -> Dict[str, float]:
    return {seed: float(row['last']) for seed, row in groups.get((name, bits), {}).items() if row['last']}


def _cell(value: Difference, mark: str) -> str:
    error = f' ± {value.error:.2f}' if isfinite(value.error) else ''
    return f'{value.mean:+.2f}{error}{" " if mark else ""}{mark}'


def _caption(study: Study, rows: Sequence[dict], groups: dict) -> List[str]:
    seconds = sorted(float(row['seconds']) for row in rows)
    count = len(_differences(study, groups, list(study.methods), list(dict.fromkeys(row['bits'] for row in rows))))
    seeds = sorted({len(found) for found in groups.values()})
    images = dict(val='the validation split', test='the test images')[rows[0]['evaluated_on']]
    text = CAPTION.format(
        images=images, baseline=study.methods[study.baseline].title, seeds=f'{" to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds',
        chance=f'{2 * stats.t.sf(LIKELY, max(seeds[-1], 2) - 1):.0%}',
        steps=_several(rows, 'steps'), crops=_several(rows, 'crops'), clear=CLEAR, count=count,
        full_precision=' or '.join(dict.fromkeys(row['full_precision'] for row in rows if row['full_precision'])),
        seconds=f'{seconds[len(seconds) // 2]:.0f}')
    return text.split('\n')


def _several(rows: Sequence[dict], column: str) -> str:
    return ' or '.join(f'{number:,}' for number in sorted({int(row[column]) for row in rows}))


def _head(names: Sequence[str]) -> List[str]:
    return [_line(names), '|' + ' --- |' * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
