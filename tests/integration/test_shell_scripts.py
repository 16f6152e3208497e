"""What the shell scripts hand to torchrun and srun, which are replaced by a program that prints its arguments."""
import pytest
import tool_runs

TOOLS = tool_runs.REPOSITORY / 'tools'
EXTRA = ['--amp', '--cfg-options', 'a=1 2']


@pytest.fixture
def call(tmp_path):
    """Return a function that runs a script and returns the program's arguments."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text('#!/usr/bin/env bash\nfor word in "$@"; do echo "<$word>"; done\n')
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **environment):
        environment.setdefault('PATH', f'{tmp_path}:/usr/bin:/bin')
        output = tool_runs.run_tool('bash', TOOLS / script, *arguments, cwd=tmp_path, environment=environment)
        return [line[1:-1] for line in output.splitlines() if line.startswith('<')]

    return run


SCRIPTS = [('dist_train.sh', ['config.py'], 'train.py'), ('dist_test.sh', ['config.py', 'weights.pth'], 'test.py')]


@pytest.mark.parametrize('script, files, program', SCRIPTS, ids=['train', 'test'])
def test_processes_on_one_machine_meet_at_a_free_port(call, script, files, program):
    words = call(script, *files, 2, *EXTRA)
    assert words[:5] == ['-m', 'torch.distributed.run', '--standalone', '--local-addr=127.0.0.1', '--nproc-per-node=2']
    assert words[5].endswith(f'/tools/{program}') and words[6:] == [*files, '--launcher', 'pytorch', *EXTRA]


@pytest.mark.parametrize('script, files, program', SCRIPTS, ids=['train', 'test'])
def test_several_machines_meet_where_the_environment_says(call, script, files, program):
    words = call(script, *files, 8, NNODES='2', NODE_RANK='1', PORT='1234', MASTER_ADDR='10.0.0.1')
    assert words[2:6] == ['--nnodes=2', '--node-rank=1', '--master-addr=10.0.0.1', '--master-port=1234']
    assert words[6] == '--nproc-per-node=8'


def test_a_given_port_is_used_on_one_machine_too(call):
    words = call('dist_train.sh', 'config.py', 2, PORT='1234')
    assert {'--nnodes=1', '--master-addr=127.0.0.1', '--master-port=1234'} <= set(words)


def test_several_machines_need_no_port(call):
    assert '--master-port=29500' in call('dist_train.sh', 'config.py', 2, NNODES='2')


@pytest.mark.parametrize('script, program', [('slurm_train.sh', 'train.py'), ('slurm_test.sh', 'test.py')],
                         ids=['train', 'test'])
def test_slurm_starts_one_task_per_gpu(call, script, program):
    last = 'there' if program == 'train.py' else 'weights.pth'
    words = call(script, 'queue', 'job', 'config.py', last, *EXTRA, GPUS='16', GPUS_PER_NODE='4', SRUN_ARGS='--mem 8G')
    assert words[:2] == ['-p', 'queue']
    assert {'--job-name=job', '--ntasks=16', '--ntasks-per-node=4', '--gres=gpu:4', '--mem', '8G'} <= set(words)
    where = '--work-dir=there' if program == 'train.py' else 'weights.pth'
    position = words.index('config.py')
    assert words[position - 1].endswith(f'/tools/{program}')
    assert words[position + 1:] == [where, '--launcher=slurm', *EXTRA]
