"""Running the tools as a user does: a subprocess in another folder."""
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run_tool(*command, cwd, expect=0, environment=()):
    """Run a command and return what it wrote; fails with that text unless it exits as expected."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    variables = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1', PATH=path)
    variables.update(environment)
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    return output


def train(*arguments, **options):
    return run_tool(sys.executable, REPOSITORY / 'tools' / 'train.py', *arguments, **options)


def test(*arguments, **options):
    return run_tool(sys.executable, REPOSITORY / 'tools' / 'test.py', *arguments, **options)


test.__test__ = False
