"""What the processes of the distributed tests run; imports torch alone, since every process imports it anew."""
import torch
import torch.distributed as dist
from torch import nn

import vvq_mm

LSQ = dict(type='LSQQuantizer', bits=4)


def scales(model):
    return torch.cat([quantizer.scale.detach() for *_, quantizer in vvq_mm.iter_quantizers(model)])


def calibrate_rank(rank, meeting_point, results, different_weights, batches=(1, 1)):
    """Calibrate a small network on images of this rank alone; put its scales, or the error, into ``results``."""
    dist.init_process_group('gloo', init_method=f'file://{meeting_point}', rank=rank, world_size=2)
    torch.manual_seed(rank if different_weights else 0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    vvq_mm.quantize_(model, dict(type='RulePolicy', weight=LSQ, act=LSQ))
    torch.manual_seed(100 + rank)
    try:
        vvq_mm.calibrate(model, [torch.randn(16, 6) * (1 + rank) for _ in range(batches[rank])])
        results[rank] = scales(model).tolist()
    except vvq_mm.QuantizationError as error:
        results[rank] = str(error)
    dist.destroy_process_group()
