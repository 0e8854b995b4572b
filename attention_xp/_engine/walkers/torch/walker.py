"""torch's walker: Python loops over torch's operations, with an autograd function around them.

Tensors on the CPU are handed to NumPy's walker, which reads them in place (`unrecorded`, `on_numpy`), unless torch has
to record what is done. Statistics are the portable walker's.
"""

from attention_xp._engine.walkers.portable.statistics import statistics
from attention_xp._engine.walkers.torch.autograd import forward
from attention_xp._engine.walkers.torch.unrecorded import backward

__all__ = ["backward", "forward", "statistics"]
