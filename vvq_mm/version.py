"""The package's version, read by ``setup.py`` and by checkpoints."""
__version__ = '0.1.0'
