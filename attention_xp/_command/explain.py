"""``explain``: what a call will do, before it is made."""

import argparse
import sys
from typing import Any

import numpy as np

from attention_xp._backend.libraries import is_numpy_namespace, is_torch_namespace
from attention_xp._command.calls import Call
from attention_xp._command.described import add_call, call_of
from attention_xp._command.estimate import estimated
from attention_xp._command.figures import duration, size
from attention_xp._command.places import MODULES, Place, find_places
from attention_xp._command.screen import say, tell_progress, warn
from attention_xp._engine.plan.tile_sizes import STRIP, compiled_shape, tile_shape, tile_sizes
from attention_xp._engine.problem.options import complete
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.compiled.found import steps_of
from attention_xp._engine.walkers.numpy.pool import with_blas_held_to_one
from attention_xp._engine.walkers.torch.on_numpy import seen_by_numpy
from attention_xp._explain import Explanation, explain
from attention_xp.masks._drawing import tile_kinds

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_call(parser)
    parser.add_argument(
        "--backend", choices=sorted(MODULES), default="numpy", help="array library of the call; default: %(default)s"
    )
    parser.add_argument("--no-measure", action="store_true", help="do not measure: no seconds and no memory")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Explain a call; return 1 where its library is missing."""
    try:
        call = call_of(args)
    except ValueError as error:
        args.parser.error(str(error))
    places, missing = find_places([args.backend])
    if not places:
        warn(missing[0])
        return 1
    place = places[0]
    if (reason := _lacks(place, call.dtype)) is not None:
        args.parser.error(reason)
    try:
        found, problem = _explained(call, place)
    except (TypeError, ValueError) as error:
        args.parser.error(str(error))
    _tell_call(call, place)
    _tell_kernels(found)
    _tell_pairs(call, found, problem)
    if not args.no_measure:
        _tell_costs(call, found, place)
    return 0


def _lacks(place: Place, dtype: str) -> str | None:
    """Return why there are no numbers of a kind."""
    if place.backend == "jax" and dtype == "float64" and not sys.modules["jax"].config.jax_enable_x64:
        return "JAX has float64 only where the variable JAX_ENABLE_X64 is 1"
    if hasattr(place.xp, dtype):
        return None
    return f"{place.backend} has no {dtype}: torch and jax have, --backend torch"


def _explained(call: Call, place: Place) -> tuple[Explanation, Problem]:
    """Return what the kernels say. The arrays are one number seen many times: a call of any size takes no memory."""
    result: list[Any] = []
    options: Any = call.options
    mask, dropout_rate = options.pop("mask"), options.pop("dropout_rate")

    def ask(*arrays: Any) -> None:
        query, key, value = arrays
        result.append(explain(query, key, value, mask, dropout_rate, return_weights=call.weights, **options))
        result.append(Problem.of(query, key, value, mask, dropout_rate, complete(options)))

    if place.backend == "jax":
        jax: Any = sys.modules["jax"]
        jax.eval_shape(ask, *(jax.ShapeDtypeStruct(shape, call.dtype) for shape in call.shapes))
    else:
        one = place.array(np.zeros(()), call.dtype)
        ask(*(place.xp.broadcast_to(one, shape) for shape in call.shapes))
    return result[0], result[1]


def _tell_call(call: Call, place: Place) -> None:
    query, key, value = (" x ".join(map(str, shape)) for shape in call.shapes)
    say(f"{place.name}, {call.dtype}: query {query}, key {key}, value {value}")
    say()


def _tell_kernels(found: Explanation) -> None:
    for kernel, verdict in found.items():
        say(f"{kernel:8}{verdict}", " " * 8)
    if found.mask_array is not None:
        say(f"mask    made as one boolean array of {' x '.join(map(str, found.mask_array))}", " " * 8)
    if found.loops is not None:
        say(f"loops   {'compiled by numba' if found.loops == 'numba' else f'by NumPy: {found.loops}'}", " " * 8)
    say()


def _tell_pairs(call: Call, found: Explanation, problem: Problem) -> None:
    say(f"pairs   {call.pairs:.3g} of query and key, {call.density:.2%} of all", " " * 8)
    if found.kernel != "tiled":
        return
    (rows, keys), what = _tile(problem, found.loops)
    say(f"tiles   {min(rows, call.queries)} queries x {min(keys, call.keys)} keys{what}", " " * 8)
    if call.mask is not None:
        kinds = tile_kinds(call.mask, (call.queries, call.keys), call.query_offset or 0, (rows, keys))
        shares = (f"{(kinds == kind).mean():.1%} {name}" for kind, name in ((0, "skipped"), (2, "whole"), (1, "mixed")))
        say(f"        {', '.join(shares)}", " " * 8)


def _tile(problem: Problem, loops: str | None) -> tuple[tuple[int, int], str]:
    """Return rows and keys of a tile, and what else there is to say of it."""
    if is_torch_namespace(problem.xp):
        problem = seen_by_numpy(problem) or problem
    if not is_numpy_namespace(problem.xp) and loops != "numba":
        return tile_sizes(problem), ""
    threads = with_blas_held_to_one(lambda count: count)
    steps = steps_of(problem)
    shape = tile_shape(problem, threads) if steps is None else compiled_shape(problem, threads)
    if steps is not None:
        what = f", in compiled steps of {steps.band} x {steps.keys}; {threads} thread{'s' if threads > 1 else ''}"
        return (shape.rows, STRIP), what
    heads = f", {shape.heads} heads at once" if shape.heads > 1 else ""
    band = f", along the window {shape.step} queries at a time" if shape.step else ""
    return (shape.rows, shape.columns), f"{heads}{band}; {threads} thread{'s' if threads > 1 else ''}"


def _tell_costs(call: Call, explained: Explanation, place: Place) -> None:
    tell_progress(0, 1, "measuring smaller calls")
    found = estimated(call, explained.kernel, place)
    tell_progress(1, 1, "measured")
    extra = "not counted here" if found.extra is None else f"about {size(found.extra)}"
    say()
    say(f"time    about {duration(found.seconds)}{', forward and backward' if call.is_backward else ''}", " " * 8)
    say(f"memory  {extra} beyond {size(call.input_bytes)} of query, key and value", " " * 8)
    say(f"without {_omitted(explained, place)}", " " * 8)
    c = found.sample
    say(f"measured at {c.batch} x {c.heads} heads, {c.queries} queries, {c.keys} keys", " " * 8)


def _omitted(explained: Explanation, place: Place) -> str:
    """Return what the real call may take beyond the estimate."""
    compilers = ["JAX"] * (place.backend == "jax") + ["numba"] * (explained.loops == "numba")
    verb = "compile" if len(compilers) > 1 else "compiles"
    compiling = f"the first call, in which {' and '.join(compilers)} {verb}; " if compilers else ""
    slow = "NaN in the arrays, which make it slower; " if place.backend == "numpy" else ""
    return f"{compiling}{slow}other programs that run at that time"
