"""``python -m attention_xp plan``: which strategy to take for sharded sequences, with what it sends, keeps and takes."""

import argparse
from collections.abc import Callable
from typing import Any

from attention_xp.distributed._costs import Cost, Machine, Sizes, best, costs

__all__ = ["add_arguments", "run"]

_CALLS = {
    "ring, zigzag": 'ring_attention(..., layout="zigzag")',
    "ring, contiguous": 'ring_attention(..., layout="contiguous")',
    "gathered": "gathered_attention(...)",
    "ulysses": "ulysses_attention(...)",
    "ulysses x ring": "ulysses_attention(..., group=(ring, heads))",
    "merged": "merged_attention(...)",
}


def _number(kind: type, least: float) -> Callable[[str], Any]:
    """Return what reads a number such as ``1e6`` or ``80e9``, from a least one on."""

    def read(text: str) -> Any:
        value = float(text)
        if not least <= value < float("inf") or (kind is int and value != int(value)):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} from {least:g} on, got {text}")
        return kind(value)

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a call and a machine.

    Parameters
    ----------
    parser : ArgumentParser
        That of the command.
    """
    count, amount = _number(int, 1), _number(float, 1e-12)
    call = parser.add_argument_group("the call")
    call.add_argument("--tokens", type=count, required=True, metavar="N", help="keys, such as 1e6")
    call.add_argument("--queries", type=count, metavar="N", help="queries, where they are not as many: 1 in decoding")
    call.add_argument("--batch", type=count, default=1, metavar="N", help="batch items (default: %(default)s)")
    call.add_argument("--heads", type=count, default=32, metavar="N", help="query heads (default: %(default)s)")
    call.add_argument("--kv-heads", type=count, metavar="N", help="key/value heads (default: as many)")
    call.add_argument("--width", type=count, default=128, metavar="N", help="of a head (default: %(default)s)")
    call.add_argument("--bytes", type=count, default=2, metavar="N", help="of a number (default: %(default)s)")
    call.add_argument("--causal", action=argparse.BooleanOptionalAction, default=True, help="(default: causal)")
    call.add_argument("--window", type=_number(int, 0), metavar="N", help="how far a query sees")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--hosts", type=count, required=True, metavar="N", help="ranks, one shard each")
    machine.add_argument(
        "--flops",
        type=amount,
        default=4e14,
        metavar="X",
        help="of a rank, a second, in attention (default: %(default)g)",
    )
    machine.add_argument(
        "--bandwidth", type=amount, default=5e10, metavar="X", help="bytes a rank sends a second (default: %(default)g)"
    )
    machine.add_argument(
        "--latency",
        type=_number(float, 0),
        default=1e-5,
        metavar="X",
        help="of a message, seconds (default: %(default)g)",
    )
    machine.add_argument(
        "--memory", type=amount, default=80e9, metavar="X", help="bytes of a rank (default: %(default)g)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table, and which strategy to take.

    Parameters
    ----------
    arguments : Namespace
        What a parser with `add_arguments` has read.

    Returns
    -------
    int
        The exit status: 0, or 1 where no strategy can compute the call.
    """
    sizes, machine = _described(arguments)
    found = costs(sizes, machine)
    chosen = best(found)
    print(_heading(arguments, sizes, machine))
    print(_table([("strategy", "sends", "messages", "memory", "time", ""), *(_line(cost, chosen) for cost in found)]))
    print()
    if chosen is None:
        print("No strategy can compute this call: take more hosts.")
        return 1
    mesh = "" if chosen.mesh is None else f" on a mesh of {_mesh(chosen.mesh)}"
    print(f"Take attention_xp.distributed.{_CALLS[chosen.strategy]}{mesh}.")
    print(
        "Bytes are those that a rank sends, and keeps beside its shards of query, key, value and output, forward.\n"
        "Time is that of the busiest rank: arithmetic, and the communication that is not hidden behind it."
    )
    return 0


def _described(given: argparse.Namespace) -> tuple[Sizes, Machine]:
    """Return the call, with sequences padded to the equal stretches of a zigzag, and the machine."""
    parts = 2 * given.hosts
    keys = -(-given.tokens // parts) * parts
    queries = keys if given.queries in (None, given.tokens) else given.queries
    sizes = Sizes(
        Sq=queries,
        Sk=keys,
        B=given.batch,
        H=given.heads,
        Hkv=given.kv_heads or given.heads,
        D=given.width,
        itemsize=given.bytes,
        is_causal=given.causal,
        window=given.window,
    )
    return sizes, Machine(given.hosts, given.flops, given.bandwidth, given.latency, given.memory)


def _heading(given: argparse.Namespace, sizes: Sizes, machine: Machine) -> str:
    padded = "" if sizes.Sk == given.tokens else f" (padded to {sizes.Sk:,})"
    queries = "" if sizes.Sq == sizes.Sk else f"queries: {sizes.Sq:,}, "
    kind = ("causal" if sizes.is_causal else "not causal") + (
        "" if sizes.window is None else f", window {sizes.window:,}"
    )
    return (
        f"{queries}{given.tokens:,} tokens{padded} on {machine.ranks} hosts; {sizes.B} x {sizes.H} heads, {sizes.Hkv} of keys "
        f"and values, of width {sizes.D}, {sizes.itemsize} bytes a number; {kind}\n"
        f"a host: {machine.flops:.3g} flop/s, {_bytes(machine.bandwidth)}/s, {_seconds(machine.latency)} a message, "
        f"{_bytes(machine.memory)}\n"
    )


def _mesh(mesh: tuple[int, int]) -> str:
    return "{} (ring) x {} (heads)".format(*mesh)


def _line(cost: Cost, chosen: Cost | None) -> tuple[str, ...]:
    note = cost.problem or ("<- take this" if cost is chosen else "" if cost.mesh is None else _mesh(cost.mesh))
    return cost.strategy, _bytes(cost.volume), f"{cost.messages:,}", _bytes(cost.memory), _seconds(cost.time), note


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *rest = ["  ".join(_padded(line, widths)).rstrip() for line in lines]
    return "\n".join([first, "-" * max(map(len, (first, *rest))), *rest])


def _padded(line: tuple[str, ...], widths: list[int]) -> list[str]:
    outer = {0, len(line) - 1}
    return [c.ljust(w) if i in outer else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]


def _bytes(number: float) -> str:
    return _scaled(number, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"))


def _seconds(number: float) -> str:
    return _scaled(number * 1e9, 1000.0, ("ns", "us", "ms", "s"))


def _scaled(number: float, step: float, units: tuple[str, ...]) -> str:
    """Return a number with three digits and the unit that suits it."""
    for unit in units[:-1]:
        if number < step * 0.9995:
            return f"{number:.3g} {unit}"
        number /= step
    return f"{number:,.3g} {units[-1]}" if number < step else f"{number:,.0f} {units[-1]}"
