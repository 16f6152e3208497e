"""The wheel, built once for the tests that need it."""
import subprocess
import sys

import pytest
from tool_runs import REPOSITORY


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    """A folder into which pip has installed the wheel of this repository, as into site-packages."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    listing = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=REPOSITORY,
                             capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split('\n')):  # a copy, so that building leaves nothing in the repository
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_symlink():
            target.symlink_to((REPOSITORY / name).readlink())
        elif (REPOSITORY / name).is_file():
            target.write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '.', '--no-deps', '--no-build-isolation', '-w', folder], cwd=source, check=True)
    wheel = next(folder.glob('*.whl'))
    subprocess.run([*pip, 'install', '--no-deps', '--no-index', '--target', folder / 'site', wheel], check=True)
    return folder / 'site'
