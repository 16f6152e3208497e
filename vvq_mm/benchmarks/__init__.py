"""How fast, how large: other people's fake quantisation at our sites, measurement, roofline and report.

Nothing of the package imports this. No quantizer in here is registered: a policy takes the class itself, see
:func:`vvq_mm.benchmarks.peers.peer_policy`.
"""
from .measure import Timing, interleaved
from .memory import keep_freed_memory, peak_memory, saved_bytes, state_bytes
from .peers import (PEERS, BrevitasQuantizer, StraightThroughQuantizer, TorchaoQuantizer, TorchLearnableQuantizer,
                    peer_policy)
from .roofline import Rates, Work, limits, measure_rates, step_work
from .textbook import TextbookBinRegularizer, TextbookQuantizer, TextbookTracker

__all__ = ['BrevitasQuantizer', 'PEERS', 'Rates', 'StraightThroughQuantizer', 'TextbookBinRegularizer',
           'TextbookQuantizer', 'TextbookTracker', 'Timing', 'TorchLearnableQuantizer', 'TorchaoQuantizer', 'Work',
           'interleaved', 'keep_freed_memory', 'limits', 'measure_rates', 'peak_memory', 'peer_policy', 'saved_bytes',
           'state_bytes', 'step_work']
