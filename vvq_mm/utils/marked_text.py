"""A generated passage of a text file, between two marks that Markdown does not show."""
from pathlib import Path
from typing import Iterable, Optional, Union


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


def update_page(mark: str, passage: str, sources: Iterable, write: Optional[Union[str, Path]] = None,
                check: Optional[Union[str, Path]] = None) -> bool:
    """Write a passage into a page, or compare it with the page, as a tool's ``--write`` and ``--check`` ask for.

    Args:
        mark (str): name of the passage.
        passage (str): what belongs there.
        sources (iterable): what it was made from, for the message.
        write (str | Path, optional): the page to change.
        check (str | Path, optional): the page to compare with.

    Returns:
        bool: whether there was a page.

    Raises:
        SystemExit: the page to compare with holds another passage.
    """
    page = write or check
    if page is not None and not replace_marked(page, mark, passage, check=bool(check)) and check:
        raise SystemExit(f'{check} differs from {", ".join(map(str, sources))}: run the same command with --write '
                         f'{check}')
    return page is not None
