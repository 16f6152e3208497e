"""Data: multi-crop data sets, stored soft labels, and a sampler that can go on mid-epoch."""
from .collate import flatten_collate
from .digits import Digits
from .fkd import convert_fkd, load_fkd
from .make_soft_labels import CropSettings, make_soft_labels
from .multi_crop import MultiCropDataset
from .replay_crop import ReplayCrop
from .sampler import Draw, ResumableSampler
from .soft_label_store import SoftLabelStore
from .soft_label_writer import SoftLabelWriter

__all__ = ['CropSettings', 'Digits', 'Draw', 'MultiCropDataset', 'ReplayCrop', 'ResumableSampler', 'SoftLabelStore',
           'SoftLabelWriter', 'convert_fkd', 'flatten_collate', 'load_fkd', 'make_soft_labels']
