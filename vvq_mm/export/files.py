"""Writing without leaving half of it: beside the target first, then renamed."""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from vvq_mm.errors import QuantizationError


@contextmanager
def fresh_folder(path: Union[str, Path], force: bool = False) -> Iterator[Path]:
    """Give a hidden folder to write into; at the end its files are in ``path``, on an error nowhere.

    It is in ``path`` if that exists (it may be another disk), else beside it.

    Args:
        path (str | Path): the folder to make; one that exists must be empty.
        force (bool): write into a folder that holds files: those of the same names are replaced once all new ones are
            complete, others stay. Defaults to False.

    Raises:
        QuantizationError: ``path`` is a file, or a folder with files and not ``force``.

    Example:
        >>> with fresh_folder('out') as folder:
        ...     (folder / 'model.bin').write_bytes(b'...')
    """
    path = Path(path).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise QuantizationError(f'expected a folder to write into, got the file {path}; give another name')
    if path.exists() and any(path.iterdir()) and not force:
        raise QuantizationError(f'expected an empty or new folder to write into, {path} holds files; give another one, '
                                'or --force to replace the files of the same names in it')
    missing = [parent for parent in path.parents if not parent.exists()]
    beside = _beside(path / 'export' if path.exists() else path)
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            _move_files(beside, path)
        else:
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in missing:
            if not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def whole_file(path: Union[str, Path]) -> Iterator[Path]:
    """Give a hidden name beside ``path`` to write to; at the end it replaces ``path``, on an error it is removed."""
    path = Path(path).expanduser().resolve()
    beside = _beside(path)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Return a hidden name in the folder of ``path``, on the same disk, that no other process uses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f'.{path.name}.{os.getpid()}.part')


def _move_files(source: Path, target: Path) -> None:
    """Move the files of one folder and those below it into another, replacing files of the same name."""
    for item in sorted(source.rglob('*')):
        place = target / item.relative_to(source)
        if item.is_dir():
            place.mkdir(exist_ok=True)
        else:
            item.replace(place)
