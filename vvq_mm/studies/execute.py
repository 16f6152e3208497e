"""Running what has no row yet, each run in a process of its own."""
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, List, Optional, Sequence

from mmengine.logging import MMLogger

from vvq_mm.errors import QuantizationError

from .rows import find, lock, read_rows, write_rows
from .run import Run


def execute(runs: Sequence[Run], file: Path, folder: Path, jobs: int = 1, threads: int = 1,
            report: Optional[Callable[[int, Run, dict], None]] = None) -> List[dict]:
    """Train the runs that have no row in ``file`` and return the rows of all, in the order of ``runs``.

    A row is written as soon as its run has ended, so the same call after a kill goes on with what is missing; a run
    that was cut off begins again. A run that fails leaves no row and does not stop the others.

    Args:
        runs (sequence of Run): all of one study.
        file (Path): CSV file of the rows.
        folder (Path): each run gets a folder in it, with its config, ``log.txt`` and checkpoints.
        jobs (int): runs at a time. Defaults to 1.
        threads (int): of torch in each run. Defaults to 1.
        report (callable, optional): called with the number of rows so far, a run and its row, for progress.

    Raises:
        QuantizationError: the file is not this study's, another process writes it, or a run failed; the message names
            its log.
    """
    with lock(file), lock(folder):
        return _execute(runs, file, folder, jobs, threads, report)


def _execute(runs, file, folder, jobs, threads, report) -> List[dict]:
    """Do what :func:`execute` promises, under the lock."""
    rows = {run.name: row for run in runs for row in find(read_rows(file, run.study), run, file)}
    waiting, failed = [run for run in runs if run.name not in rows], []
    others = [row for row in read_rows(file, runs[0].study) if row not in rows.values()]  # of runs not asked for now
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['vvq_mm.studies.worker'])  # what takes seconds to import is imported once
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        futures = {pool.submit(_run, run, folder / run.name, threads, context): run for run in waiting}
        try:
            for future in as_completed(futures):
                run, result = futures[future], future.result()
                if result is None:
                    failed.append(run)
                    MMLogger.get_current_instance().error(f'{run.name} failed: {folder / run.name / "log.txt"}')
                    continue
                rows[run.name] = dict(study=run.study, config=run.config, method=run.method, bits=run.bits,
                                      seed=str(run.seed), evaluated_on=run.evaluate_on, digest=run.digest, **result)
                write_rows(file, [*others, *(rows[one.name] for one in runs if one.name in rows)])
                if report is not None:
                    report(len(rows), run, rows[run.name])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if failed:
        raise QuantizationError(f'expected {len(waiting)} runs to end well, {len(failed)} did not: '
                                f'{", ".join(run.name for run in failed[:5])}; see '
                                f'{folder / failed[0].name / "log.txt"}. Finished runs have their rows: mend the cause '
                                'and give the same command again')
    return [rows[run.name] for run in runs]


def _run(run: Run, work_dir: Path, threads: int, context) -> Optional[dict]:
    """Train in a fresh process and return its result, None if it failed."""
    from .worker import train
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    config = work_dir / f'{run.name}_run.py'
    config.write_text(run.config_text())
    process = context.Process(target=train, args=(str(config), str(work_dir), threads))
    process.start()
    process.join()
    result = work_dir / 'result.json'
    return json.loads(result.read_text()) if process.exitcode == 0 and result.is_file() else None
