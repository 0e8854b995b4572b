"""Few rows on many keys of JAX that lie in host memory, outside of traces: NumPy's loops read them in place.

JAX would read the keys once for the scores and once more for the sums, and writes what is between.
"""

import dataclasses
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._typing import Array

__all__ = ["are_few_rows", "few_rows"]


def are_few_rows(problem: Problem) -> bool:
    """Whether loops are compiled that are faster, and NumPy sees the arrays without a copy."""
    if problem.group == 1 or not isinstance(problem.scale, float):  # most calls are done with here
        return False
    if not all(map(_is_on_host, problem.differentiated)):  # before sizes are compared, which a trace may leave open
        return False
    if len(_committed_to(problem)) > 1:  # JAX refuses them
        return False
    from attention_xp._engine.walkers.numpy.at_once import are_compiled  # noqa: PLC0415  # imports NumPy

    return are_compiled(problem)


def few_rows(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem of few rows."""
    import array_api_compat.numpy as np  # noqa: PLC0415
    import jax  # noqa: PLC0415

    from attention_xp._engine.walkers.numpy.at_once import attend  # noqa: PLC0415  # imports NumPy

    seen = problem.with_differentiated([np.asarray(a) for a in problem.differentiated])
    seen = dataclasses.replace(seen, xp=np, dtype=getattr(np, dtype_name(problem.dtype)))
    with np.errstate(all="ignore"):  # JAX warns of nothing
        found = attend(seen, wanted)
    place = next(iter(_committed_to(problem)), None)
    return Attended(*(None if a is None else jax.device_put(a, place) for a in found))


def _committed_to(problem: Problem) -> set[Any]:
    """Return the devices that arrays are committed to, where the result stays; without one, it may move as they may."""
    return {device for a in problem.differentiated if a.committed for device in a.sharding.device_set}


def _is_on_host(array: Array) -> bool:
    import jax  # noqa: PLC0415

    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return False
    devices: Any = array.sharding.device_set
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)
