"""torch's walker: Python loops over torch's operations, with doors to its derivatives.

Tensors on the CPU it hands to NumPy's walker, which reads them where they lie, in `unrecorded`, unless torch
has to see what is done; see `on_numpy`. Statistics are the portable walker's.
"""

from attention_xp._engine.walkers.portable.statistics import statistics
from attention_xp._engine.walkers.torch.autograd import forward
from attention_xp._engine.walkers.torch.unrecorded import backward

__all__ = ["backward", "forward", "statistics"]
