"""The plan of every ImageNet recipe, printed and saved by tools/print_plan.py in a fresh interpreter in another folder."""
import json
import sys

import pytest
from shipped import IMAGENET
from tool_runs import REPOSITORY, run_tool

SITES = dict(deit=(50, 98), swin=(53, 97))  # quantisers of weights and of activations
# megabytes: block weights at their width, first and last layer at 8 bits, the rest in float32
SIZES = dict(deit_t=(3.27, 2.61, 1.94), deit_s=(11.85, 9.20, 6.54), deit_b=(44.9, 34.3, 23.7), swin_t=(15.6, 12.4, 9.1))


@pytest.mark.slow
@pytest.mark.parametrize('name', IMAGENET)
def test_the_plan_of_a_recipe_is_printed_and_saved(name, tmp_path):
    family, bits = name[:6], int(name[-1])
    output = run_tool(sys.executable, REPOSITORY / 'tools' / 'print_plan.py', REPOSITORY / 'configs' / 'vvq' / f'{name}.py',
                      '--out', 'plan.json', cwd=tmp_path)
    weights, acts = SITES[family[:4]]
    assert f'{weights} weight and {acts} activation quantizers' in output
    assert f'{bits} bit signed LSQ, 3 groups on axis 0' in output and f'{bits} bit unsigned LSQ, offset' in output
    saved = json.loads((tmp_path / 'plan.json').read_text())
    assert saved['cost']['bytes'] / 1e6 == pytest.approx(SIZES[family][4 - bits], rel=0.01)
    assert saved['cost']['bit_operations'] < saved['cost']['float_bit_operations'] / 35
    assert saved['plan']['slots'] and saved['plan']['reasons']
