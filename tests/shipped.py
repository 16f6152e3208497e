"""The configs of the repository, by name."""
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / 'configs'
TEXT = sorted(path for folder in ('vvq', 'digits', 'fashion_mnist') for path in (CONFIGS / folder).glob('*.py'))
IMAGENET = sorted(path.stem for path in (CONFIGS / 'vvq').glob('*.py'))
