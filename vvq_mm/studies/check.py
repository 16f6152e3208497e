"""Finding what is wrong with a study before anything is trained."""
import difflib
import inspect

from mmengine.config import Config
from mmengine.runner import Runner

from vvq_mm.errors import QuantizationError
from vvq_mm.utils.evaluate import build_model
from vvq_mm.utils.launch import existing_config

from .definition import Study


def check_configs(study: Study) -> None:
    """Read the config and build the model of every method at every width, once.

    Raises:
        QuantizationError: a change names no part of the config, or the model cannot be built with it.
        FileNotFoundError: the config is not there.
    """
    known = {*Config.fromfile(existing_config(study.config)), *inspect.signature(Runner).parameters}
    seen = set()
    for run in study.runs:
        if run.digest in seen:
            continue
        seen.add(run.digest)
        where = f'{run.method} at {run.bits} of the study {study.name}'
        for key in run.changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
                raise QuantizationError(f'expected a part of {study.config} to change, got {key!r} in {where}; near '
                                        f'it: {", ".join(near) or "nothing"}')
        try:
            build_model(Config.fromstring(run.config_text(), '.py'))
        except (QuantizationError, TypeError, KeyError) as error:
            raise QuantizationError(f'{where}: {error}') from error
