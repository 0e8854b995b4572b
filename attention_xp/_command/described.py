"""The arguments that describe a call, and the call that they describe."""

import argparse
import math
from typing import Any

from attention_xp._command.calls import Call

__all__ = ["add_call", "call_of", "positive", "window"]

_DTYPES = ("float64", "float32", "float16", "bfloat16")


def add_call(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--shape", type=_shape, default="1,8,2048,64", metavar="B,H,Sq,D",
        help="batch items, heads, queries and width of a head; default: %(default)s")  # fmt: skip
    add("--keys", type=positive, metavar="Sk", help="keys; default: as many as queries")
    add("--kv-heads", type=positive, metavar="Hkv", help="heads of keys and values; default: as many as of queries")
    add("--value-width", type=positive, metavar="Dv", help="width of a value; default: that of a query")
    add("--dtype", choices=_DTYPES, default="float32", help="kind of number; default: %(default)s")
    add("--causal", action="store_true", help="no query attends keys after it")
    add("--window", type=window, metavar="LEFT[,RIGHT]",
        help="each query attends so many keys before and after it; one number is for both sides, 'none' opens a side")  # fmt: skip
    add("--query-offset", type=_natural, metavar="N", help="position of the first query; keys start at 0")
    add("--key-length", type=_natural, metavar="N", help="no key from this position on is attended: padding")
    add(
        "--segments",
        type=positive,
        metavar="N",
        help="so many sequences of one length in a row, each attends only itself",
    )
    add("--bias", choices=("alibi",), help="what is added to the scores: a slope for each head times the distance")
    add("--softcap", type=float, metavar="CAP", help="scores are kept below this")
    add("--dropout", type=float, default=0.0, metavar="RATE", help="share of the weights that is dropped")
    add("--weights", action="store_true", help="the weights are asked for, too")
    add("--backward", action="store_true", help="the gradients of query, key and value are asked for, too")
    add(
        "--impl", choices=("auto", "dense", "tiled", "fused"), default="auto", help="kernel; default: the best that can"
    )


def call_of(args: argparse.Namespace) -> Call:
    """Return the call that the arguments describe; `ValueError` where they contradict each other."""
    batch, heads, queries, width = args.shape
    keys = args.keys or queries
    if args.backward and args.weights:
        raise ValueError("--backward asks for gradients, and no call returns them with --weights")
    if args.segments is not None and args.segments > keys:
        raise ValueError(f"--segments must be at most the number of keys, {keys}, got {args.segments}")
    return Call(
        batch, heads, queries, width,
        keys, args.kv_heads or heads, args.value_width or width,
        dtype=args.dtype, is_causal=args.causal, window=args.window, query_offset=args.query_offset,
        key_length=args.key_length, segment=None if args.segments is None else math.ceil(keys / args.segments),
        has_alibi=args.bias == "alibi", softcap=args.softcap, dropout_rate=args.dropout, weights=args.weights,
        is_backward=args.backward, impl=args.impl,
    )  # fmt: skip


def positive(text: str) -> int:
    """Return a positive int."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"expected four numbers B,H,Sq,D, got {text!r}")
    return tuple(map(positive, sizes))


def window(text: str) -> tuple[int | None, int | None]:
    """Return the sides of a window."""
    sides: list[Any] = [None if side == "none" else _natural(side) for side in text.split(",")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"expected one number or two, got {text!r}")
    return sides[0], sides[-1]
