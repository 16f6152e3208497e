"""Every test starts from the same random state, on one thread, with none of MMEngine's singletons of another test."""
import random

import hypothesis
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.visualization import UniversalVisualizer

torch.set_num_threads(1)
hypothesis.settings.register_profile('default', derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile('default')


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def clean_singletons():
    """MMEngine keeps loggers, hubs, visualisers and scopes by name; a Runner of another test must not find them."""
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            handler.close()
    for kind in (MMLogger, MessageHub, Visualizer, UniversalVisualizer, DefaultScope):
        kind._instance_dict.clear()
