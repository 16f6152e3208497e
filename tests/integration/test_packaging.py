"""The wheel carries what a downstream project needs, and such a project needs no file of this repository."""
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tool_runs

pytestmark = pytest.mark.slow
REPOSITORY = tool_runs.REPOSITORY


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A folder with the content of the wheel, as site-packages would have it."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    listing = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=REPOSITORY,
                             capture_output=True, text=True, check=True)
    files = listing.stdout.split('\n')
    for name in filter(None, files):  # a copy, so that building leaves nothing in the repository
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_symlink():
            target.symlink_to((REPOSITORY / name).readlink())
        elif (REPOSITORY / name).is_file():
            target.write_bytes((REPOSITORY / name).read_bytes())
    build = [sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation', '-q', '-w', folder]
    subprocess.run(build, cwd=source, check=True)
    zipfile.ZipFile(next(folder.glob('*.whl'))).extractall(folder / 'site')
    return folder / 'site'


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


TEXT = """
_base_ = ['vvq_mm::vvq/deit_b_w4a4.py']
model = dict(policy=dict(rules={'head.*': 6}))
train_dataloader = dict(dataset=dict(num_crops=2))
"""
LAZY = """
from mmengine.config import read_base
with read_base():
    from vvq_mm.configs.vvq_lazy.deit_b_w4a4 import *
model['policy']['rules']['head.*'] = 6
train_dataloader['dataset']['num_crops'] = 2
"""


@pytest.mark.parametrize('config', [TEXT, LAZY], ids=['text_style', 'lazy_style'])
def test_a_downstream_config_inherits_and_overrides_in_two_lines(site, tmp_path, config):
    (tmp_path / 'mine.py').write_text(config)
    program = """
import vvq_mm
from mmengine.config import Config
config = Config.fromfile('mine.py')
assert 'site/vvq_mm' in vvq_mm.__file__
print('crops', config.train_dataloader.dataset.num_crops, 'head', config.model.policy.rules['head.*'])
from vvq_mm.registry import MODELS
from mmengine.registry import init_default_scope
init_default_scope(config.default_scope)
config.model.backbone.arch = dict(embed_dims=96, num_layers=1, num_heads=3, feedforward_channels=96)
config.model.head.in_channels = 96
print(type(MODELS.build(config.model)).__name__)
"""
    output = tool_runs.run_tool(sys.executable, '-c', program, cwd=tmp_path, environment=dict(PYTHONPATH=str(site)))
    assert 'crops 2 head 6' in output and 'QATImageClassifier' in output


def test_the_packed_tools_run(site, tmp_path):
    packed = site / 'vvq_mm' / '.mim' / 'tools' / 'train.py'
    output = tool_runs.run_tool(sys.executable, packed, '--help', cwd=tmp_path, environment=dict(PYTHONPATH=str(site)))
    assert '--trust-checkpoint' in output and Path(packed).is_file()
