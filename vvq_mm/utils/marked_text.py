"""A generated passage of a text file, between two marks that Markdown does not show."""
from pathlib import Path
from typing import Union


def replace_marked(path: Union[str, Path], mark: str, passage: str, check: bool = False) -> bool:
    """Put ``passage`` between ``<!-- mark: begin -->`` and ``<!-- mark: end -->`` and return whether it was there.

    Args:
        path (str | Path): the file.
        mark (str): name of the passage.
        passage (str): what belongs there.
        check (bool): whether to leave the file as it is. Defaults to False.

    Raises:
        OSError: the file is not there, or has not each mark once.
    """
    path, begin, end = Path(path), f'<!-- {mark}: begin -->', f'<!-- {mark}: end -->'
    text = path.read_text(encoding='utf-8')
    if text.count(begin) != 1 or text.count(end) != 1:
        raise OSError(f'expected {begin} and {end} once each in {path}; put them where the table belongs')
    new = f'{text.split(begin)[0]}{begin}\n{passage}\n{end}{text.split(end)[1]}'
    if not check and new != text:
        path.write_text(new, encoding='utf-8')
    return new == text
