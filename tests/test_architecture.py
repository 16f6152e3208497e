"""The architecture, as rules: imports point downwards, files and functions stay small, the API is what it is."""
import ast
import sys
from pathlib import Path

import pytest

import vvq_mm

PACKAGE = Path(vvq_mm.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts and 'configs' not in path.parts)

# Floors, from the ground up; a module may import modules of its own package and of lower floors only.
FLOORS = [
    {'errors', 'version'},
    {'registry'},
    {'functional', 'schedules'},
    {'quantizers'},
    {'layers'},
    {'policy'},
    {'surgery'},
    {'calibration', 'weight_layers'},
    {'oscillation', 'analysis', 'plots'},
    {'utils'},
    {'export'},
    {'losses', 'distillers'},
    {'models', 'datasets', 'hooks'},
    {'benchmarks', 'studies'},
    {'__init__'},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# what each part may take from outside, beside the standard library, torch and numpy
MMENGINE_REGISTRY = {'mmengine.registry'}
THIRD_PARTY = {
    'registry': MMENGINE_REGISTRY,
    '__init__': {'mmengine.config'},
    'plots': {'matplotlib'},
    'benchmarks': {'matplotlib', 'mmengine', 'mmpretrain', 'rich'},
    'studies': {'mmengine', 'scipy', 'yaml'},
    'utils': {'mmengine', 'mmpretrain', 'mmcv', 'timm', 'tqdm'},
    'export': {'mmengine', 'mmpretrain', 'mmcv', 'safetensors', 'tqdm'},
    'distillers': {'mmengine', 'mmpretrain', 'mmcv'},
    'models': {'mmengine', 'mmpretrain', 'mmcv'},
    'datasets': {'mmengine', 'mmpretrain', 'mmcv', 'PIL', 'sklearn', 'torchvision'},
    'hooks': {'mmengine', 'mmpretrain', 'mmcv'},
}


def part(path):
    """First name below the package: the unit that has a floor."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(path):
    """Absolute names of everything a file imports; relative imports resolved."""
    package = ('vvq_mm', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(name for name in (base, node.module) if name)
            if module == 'vvq_mm':
                yield from (f'vvq_mm.{alias.name}' for alias in node.names)
            else:
                yield module


def ids(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_imports_point_downwards(path):
    own = part(path)
    for name in imported(path):
        if name.startswith('vvq_mm.'):
            other = name.split('.')[1]
            words = f'{own} (floor {FLOOR[own]}) imports {other} (floor {FLOOR[other]})'
            assert other == own or FLOOR[other] < FLOOR[own], words


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_outside_imports_are_those_of_the_floor(path):
    allowed = THIRD_PARTY.get(part(path), set())
    for name in imported(path):
        top = name.split('.')[0]
        if top not in sys.stdlib_module_names and top not in ('vvq_mm', 'torch', 'numpy'):
            assert any(name == ok or name.startswith(f'{ok}.') for ok in allowed), f'{name} is not for {part(path)}'


def test_files_are_small_and_the_median_smaller():
    lines = sorted(path.read_text().count('\n') for path in FILES)
    assert lines[-1] <= 350 and lines[len(lines) // 2] <= 115


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_functions_fit_a_screen_and_say_what_they_do(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), 'a module says what it is'
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 66, f'{node.name} is too long'
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                assert not any(getattr(call.func, 'id', '') == 'print' for call in calls), node.name
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            assert ast.get_docstring(node), f'{node.name} needs a docstring'


def test_the_torch_level_api_needs_no_runner():
    import subprocess
    heavy = ('mmengine.runner', 'mmpretrain', 'mmcv', 'timm')
    code = f'import sys, vvq_mm; print([name for name in {heavy} if name in sys.modules])'
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'


def test_public_api_is_what_it_is():
    assert sorted(vvq_mm.__all__) == [
        'CheckpointError', 'QuantPlan', 'QuantizationError', 'QuantizerNotReady', 'SoftLabelError', 'TrainingDiverged',
        '__version__', 'apply_plan', 'calibrate', 'iter_quantizers', 'quantize_', 'quantizer_mode', 'unquantize_',
        'verify']


def test_registered_components_are_what_they_are():
    from vvq_mm import registry
    names = {}
    for kind in ('MODELS', 'HOOKS', 'DATASETS', 'TRANSFORMS', 'FUNCTIONS', 'DATA_SAMPLERS', 'QUANTIZERS', 'POLICIES',
                 'SCHEDULES'):
        node = getattr(registry, kind)
        node.import_from_location()
        names[kind] = sorted(name for name, item in node.module_dict.items() if item.__module__.startswith('vvq_mm.'))
    assert names == dict(
        MODELS=['BinRegularizer', 'DampeningRegularizer', 'ExportedClassifier', 'QATImageClassifier', 'QATTimmClassifier',
                'SoftLabelDistiller', 'SumDistiller', 'TeacherDistiller'],
        HOOKS=['AccuracyReportHook', 'CalibrateHook', 'CheckFiniteHook', 'ExactResumeHook', 'OscillationHook',
               'SafeCheckpointHook', 'TrainingSummaryHook'],
        DATASETS=['Digits', 'MultiCropDataset'],
        TRANSFORMS=['ReplayCrop'],
        FUNCTIONS=['flatten_collate'],
        DATA_SAMPLERS=['ResumableSampler'],
        QUANTIZERS=['LSQQuantizer'],
        POLICIES=['PlanFile', 'RulePolicy'],
        SCHEDULES=['ConstantSchedule', 'CosineSchedule', 'LinearSchedule'])
