"""Running the tools as a user does: a subprocess in another folder."""
import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SECONDS = 300


def run_tool(*command, cwd, expect=0, environment=()):
    """Run a command and return what it wrote; fails with that text unless it exits as expected."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    variables = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1', PATH=path)
    variables.update(environment)
    words = [str(word) for word in command]
    process = subprocess.Popen(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        output = ''.join(process.communicate(timeout=SECONDS))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # to its children too, which would hold its pipes open
        output = ''.join(process.communicate(timeout=60))
        raise AssertionError(f'no end after {SECONDS} seconds:\n{output}') from None
    assert process.returncode == expect, output
    return output


def train(*arguments, **options):
    return run_tool(sys.executable, REPOSITORY / 'tools' / 'train.py', *arguments, **options)


def test(*arguments, **options):
    return run_tool(sys.executable, REPOSITORY / 'tools' / 'test.py', *arguments, **options)


test.__test__ = False
