"""The documentation tells the truth: its blocks run, and what it names exists.

A fence ``python run`` is executed, ``python file=NAME`` is written to NAME; the blocks of a page share a folder and a
namespace.
"""
import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import Registry
from vvq_mm import registry
from vvq_mm.layers import attention

REPOSITORY = Path(__file__).parents[2]
FILES = [REPOSITORY / 'README.md', *sorted(REPOSITORY.glob('docs/*.md'))]
PAGES = {str(page.relative_to(REPOSITORY)): page for page in FILES}
FENCE = re.compile(r'^```python (run|file=\S+)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)')
# a path in this repository: a folder of it, then words; upper-case words are place-holders
PATH = re.compile(r'(?<![\w./:-])((?:configs|tools|docs|tests|requirements|vvq_mm)/[\w./-]*\w)')
BASE = re.compile(r'vvq_mm::([\w/]+\.py)')
TYPE = re.compile(r"type='vvq_mm\.(\w+)'")
KNOB = re.compile(r'default_hooks\.(\w+)')
REGISTRIES = [node for node in vars(registry).values() if isinstance(node, Registry)]

pages = pytest.mark.parametrize('page', PAGES.values(), ids=PAGES)


def blocks(page):
    """Return (kind, code, line above the code) of each marked block."""
    text = page.read_text(encoding='utf-8')
    return [(match[1], match[2], text[:match.start(2)].count('\n')) for match in FENCE.finditer(text)]


RUNNABLE = {name: page for name, page in PAGES.items() if blocks(page)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A page's folder: where its blocks run, and what they can import from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention, '_CLASSES', dict(attention._CLASSES))
    for node in REGISTRIES:  # what a page registers is forgotten after it
        node.import_from_location()
        monkeypatch.setattr(node, '_module_dict', dict(node.module_dict))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, '__file__', None)).startswith(f'{tmp_path}/'):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize('page', RUNNABLE.values(), ids=RUNNABLE)
def test_the_blocks_of_a_page_run(page, folder):
    names = {'__name__': '__page__'}
    for kind, code, line in blocks(page):
        if kind == 'run':
            exec(compile('\n' * line + code, str(page), 'exec'), names)
        else:
            (folder / kind.removeprefix('file=')).write_text(code)


@pages
def test_links_lead_to_files_and_headings(page):
    missing = []
    for link in LINK.findall(page.read_text()):
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            missing.append(link)
    assert not missing


def headings(page):
    """Return the anchors that a page's headings get."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pages
def test_named_files_and_configs_exist(page):
    text = page.read_text()
    names = PATH.findall(text) + [f'configs/{name}' for name in BASE.findall(text)]
    assert not [name for name in names if not (REPOSITORY / name).exists()]


@pages
def test_named_types_are_registered(page):
    unknown = [name for name in TYPE.findall(page.read_text()) if not any(node.get(name) for node in REGISTRIES)]
    assert not unknown


@pages
def test_named_hooks_are_in_the_recipe(page):
    recipe = Config.fromfile(REPOSITORY / 'configs' / '_base_' / 'recipe.py').vvq_hooks
    assert set(KNOB.findall(page.read_text())) <= set(recipe)


def test_every_page_is_in_the_index():
    index = (REPOSITORY / 'docs' / 'index.md').read_text()
    names = {page.name for page in PAGES.values() if page.parent.name == 'docs'} - {'index.md'}
    assert not [name for name in names if f']({name})' not in index]
