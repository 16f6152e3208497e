"""The wheel carries what a downstream project needs; such a project trains in test_downstream.py."""
import sys
from pathlib import Path

import pytest
import tool_runs

pytestmark = pytest.mark.slow
REPOSITORY = tool_runs.REPOSITORY

PACKED = [('configs', 'vvq_mm/.mim/configs'), ('configs', 'vvq_mm/configs'), ('tools', 'vvq_mm/.mim/tools')]


@pytest.mark.parametrize('source, packed', PACKED, ids=['text_configs', 'lazy_configs', 'tools'])
def test_the_wheel_carries_every_file(site, source, packed):
    kinds = ('.py', '.sh', '.pth')
    folder = REPOSITORY / source
    wanted = {file.relative_to(folder) for file in folder.rglob('*') if file.suffix in kinds}
    got = {file.relative_to(site / packed) for file in (site / packed).rglob('*') if file.is_file()}
    assert wanted and wanted <= got


def test_the_wheel_names_no_mmcv_but_in_an_extra(site):
    metadata = next(site.glob('*.dist-info/METADATA')).read_text()
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist:')]
    assert not [line for line in required if 'mmcv' in line and 'extra' not in line]
    assert [line for line in required if 'mmcv-lite' in line and 'lite' in line]


def test_the_packed_tools_run(site, tmp_path):
    packed = site / 'vvq_mm' / '.mim' / 'tools' / 'train.py'
    output = tool_runs.run_tool(sys.executable, packed, '--help', cwd=tmp_path, environment=dict(PYTHONPATH=str(site)))
    assert '--trust-checkpoint' in output and Path(packed).is_file()
