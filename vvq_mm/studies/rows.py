"""The rows of a study: a CSV file, one line for each finished run."""
import csv
import fcntl
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Sequence

from vvq_mm.errors import QuantizationError

from .run import Run

VERSIONS = ('torch', 'mmengine', 'mmpretrain', 'vvq_mm')
MEASURED = ('full_precision', 'start', 'start_loss', 'last', 'train_loss', 'oscillating', 'steps', 'crops', 'seconds')
COLUMNS = ('study', 'config', 'method', 'bits', 'seed', 'evaluated_on', *MEASURED, 'digest', *VERSIONS)


def read_rows(file: Path, study: str) -> List[dict]:
    """Return the rows of ``file`` as dicts of strings; none where there is no file.

    Raises:
        QuantizationError: it holds something else, or rows of another study.
    """
    if file.is_dir():
        raise QuantizationError(f'expected a CSV file, got the folder {file}; name a file in it')
    if not file.is_file():
        return []
    with file.open(newline='', encoding='utf-8') as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise QuantizationError(f'expected columns {",".join(COLUMNS)}, got {reader.fieldnames} in {file}; give '
                                    'another --csv')
        rows = list(reader)
    for row in rows:
        if row['study'] != study:
            raise QuantizationError(f'expected rows of the study {study!r} in {file}, got one of {row["study"]!r}; '
                                    'give another --csv, or move the file away')
    return rows


def write_rows(file: Path, rows: Sequence[dict]) -> None:
    """Write the file anew; it is whole at any time."""
    partial = file.with_suffix('.csv.partial')
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep a second study away from a file or folder meanwhile; the lock ends with the process, whatever ends it.

    Raises:
        QuantizationError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f'{path.name}.lock').open('w') as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise QuantizationError(f'expected to be the only study that writes {path}, another one is at it; wait for '
                                    'it, or give another --csv and --work-dir') from error
        yield


def find(rows: Sequence[dict], run: Run, file: Path) -> List[dict]:
    """Return the row of ``run`` in a list, an empty list where it has none.

    Raises:
        QuantizationError: the run has a row, but its definition was another then.
    """
    found = [row for row in rows
             if (row['method'], row['bits'], row['seed']) == (run.method, run.bits, str(run.seed))]
    for row in found:
        if row['digest'] != run.digest:
            raise QuantizationError(f'expected rows of the present definition in {file}, got one of {run.name} made '
                                    f'with another ({row["digest"]}, now {run.digest}): the study, the config that it '
                                    'inherits or a plan file has changed; remove the row to train it again, or give '
                                    'another --csv')
    return found
