"""Output folders and files are whole or not there."""
import pytest

from vvq_mm.errors import QuantizationError
from vvq_mm.export.files import fresh_folder, whole_file


def write(path, force=False, **files):
    with fresh_folder(path, force) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_appears_with_its_files(tmp_path):
    write(tmp_path / 'deep' / 'out', model='1')
    assert content(tmp_path / 'deep' / 'out') == dict(model='1')
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['out']


def test_nothing_is_there_before_everything_is(tmp_path):
    with fresh_folder(tmp_path / 'out') as folder:
        (folder / 'model').write_text('1')
        assert not (tmp_path / 'out').exists() and folder.name.startswith('.')


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'out').mkdir()
    write(tmp_path / 'out', model='1')
    assert content(tmp_path / 'out') == dict(model='1')


def test_a_folder_with_files_is_refused_without_force(tmp_path):
    (tmp_path / 'notes').write_text('mine')
    with pytest.raises(QuantizationError, match='holds files.*--force'):
        write(tmp_path, model='1')
    assert content(tmp_path) == dict(notes='mine')


def test_force_replaces_the_same_names_and_leaves_others(tmp_path):
    write(tmp_path / 'out', model='1', notes='mine')
    (tmp_path / 'out' / 'plots').mkdir()
    with fresh_folder(tmp_path / 'out', force=True) as folder:
        (folder / 'plots').mkdir()
        (folder / 'plots' / 'size').write_text('plot')
        (folder / 'model').write_text('2')
    assert (tmp_path / 'out' / 'model').read_text() == '2' and (tmp_path / 'out' / 'notes').read_text() == 'mine'
    assert content(tmp_path / 'out' / 'plots') == dict(size='plot')
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('force', [False, True], ids=['new', 'force'])
def test_an_error_leaves_everything_as_it_was(tmp_path, force):
    if force:
        write(tmp_path / 'out', model='1')
    with pytest.raises(ZeroDivisionError), fresh_folder(tmp_path / 'out', force) as folder:
        (folder / 'model').write_text('half')
        1 / 0
    assert [path.name for path in tmp_path.iterdir()] == (['out'] if force else [])
    assert not force or content(tmp_path / 'out') == dict(model='1')


def test_the_current_folder_can_be_filled(tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    monkeypatch.chdir(tmp_path / 'out')
    write('.', model='1')
    assert content(tmp_path / 'out') == dict(model='1')


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(QuantizationError, match='got the file'):
        write(tmp_path / 'out', force=True, model='1')


def test_a_file_is_replaced_once_the_new_one_is_whole(tmp_path):
    (tmp_path / 'model').write_text('1')
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / 'model') as beside:
        beside.write_text('half')
        1 / 0
    assert content(tmp_path) == dict(model='1')
    with whole_file(tmp_path / 'model') as beside:
        beside.write_text('2')
    assert content(tmp_path) == dict(model='2')
