"""Studies: methods x bits x seeds of one config, trained run by run, a row for each, and what the rows show."""
from .compare import Difference, compare, holm
from .definition import Method, Study, read_study
from .execute import execute
from .rows import COLUMNS, read_rows
from .run import Run

__all__ = ['COLUMNS', 'Difference', 'Method', 'Run', 'Study', 'compare', 'execute', 'holm', 'read_rows', 'read_study']
