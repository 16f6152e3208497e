"""Train methods x bits x seeds of one config, a row of a CSV file for each run, and make the table that compares them.

    python tools/study.py configs/studies/fashion_mnist.yaml --jobs 2
    python tools/study.py configs/studies/fashion_mnist.yaml --report [--write FILE | --check FILE]

What has a row is not trained again, so after a kill the same command goes on.
"""
import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vvq_mm  # noqa: F401  (makes vvq_mm:: bases known)
from vvq_mm.errors import QuantizationError
from vvq_mm.studies import Study, execute, read_rows, read_study
from vvq_mm.studies.check import check_configs
from vvq_mm.studies.report import make_summary, make_tables
from vvq_mm.studies.rows import find
from vvq_mm.utils.launch import errors_in_a_sentence
from vvq_mm.utils.marked_text import replace_marked


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='study file')
    parser.add_argument('--csv', type=Path, help='file of the rows (default: docs/results/study_NAME.csv)')
    parser.add_argument('--work-dir', type=Path, help='folder of the runs (default: work_dirs/study_NAME)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (default: 1)')
    parser.add_argument('--threads', type=int, default=1, help='threads of each run (default: 1)')
    parser.add_argument('--report', action='store_true', help='print the tables of the rows so far; train nothing')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--write', type=Path, metavar='FILE',
                        help='with --report: put the tables between the marks "study NAME", "study NAME summary"')
    action.add_argument('--check', type=Path, metavar='FILE', help='with --report: exit with 1 if FILE has others')
    return parser.parse_args()


def run(study: Study, args: argparse.Namespace) -> None:
    register_all_modules()
    MMLogger.get_current_instance().setLevel('WARNING')
    rows_of(study, args)
    check_configs(study.runs)
    for path, command in study.prepare.items():
        if not Path(path).exists():
            print('python', command, flush=True)
            if code := subprocess.run([sys.executable, *shlex.split(command)]).returncode:
                raise QuantizationError(f'expected `python {command}` to succeed, got exit status {code}; what it said '
                                        'is above')
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = [TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn()]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(study.name, total=len(study.runs))

        def say(done: int, one, row: dict) -> None:
            progress.update(task, completed=done)
            console.print(f'[{done}/{len(study.runs)}] {one.name}: {row["full_precision"]} in full precision, '
                          f'{row["start"]} calibrated, {row["last"]} trained, {row["seconds"]} s', highlight=False,
                          markup=False)

        execute(study.runs, args.csv, args.work_dir, args.jobs, args.threads, say)
        progress.update(task, completed=len(study.runs))
    console.print(f'All {len(study.runs)} runs have rows in {args.csv}; --report makes the tables.')


def rows_of(study: Study, args: argparse.Namespace) -> list:
    """Return the rows of the study's runs, in their order; a row of another definition is refused."""
    rows = read_rows(args.csv, study.name)
    return [row for run in study.runs for row in find(rows, run, args.csv)]


def report(study: Study, args: argparse.Namespace) -> None:
    rows = rows_of(study, args)
    mark, page = f'study {study.name}', args.write or args.check
    passages = {mark: make_tables(study, rows), f'{mark} summary': make_summary(study, rows)}
    if page is None:
        print(passages[mark])
        return
    text = page.read_text(encoding='utf-8')
    marks = [mark for mark in passages if f'<!-- {mark}: begin -->' in text] or list(passages)[:1]
    agree = [replace_marked(page, mark, passages[mark], check=bool(args.check)) for mark in marks]
    if args.check and not all(agree):
        raise SystemExit(f'{args.check} differs from the rows in {args.csv}: run `python tools/study.py {args.study} '
                         f'--report --write {args.check}`')


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        study = read_study(args.study)
        args.csv = args.csv or Path('docs/results') / f'study_{study.name}.csv'
        args.work_dir = args.work_dir or Path('work_dirs') / f'study_{study.name}'
        try:
            (report if args.report else run)(study, args)
        except KeyboardInterrupt:
            raise SystemExit(f'Stopped. Finished runs have their rows in {args.csv}; the same command goes on.') from None


if __name__ == '__main__':
    main()
