"""The commands of ``python -m attention_xp``, and the choice between them."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from attention_xp import __version__
from attention_xp._command.screen import warn

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "check": "compute attention with every array library of this machine, and compare with the formula (the default)",
    "bench": "measure attention against the kernels of the libraries, for sequences of many lengths",
    "explain": "tell what a call will do before it is made: kernel, tiles, seconds and memory",
    "show": "show how a small language model, all-MiniLM-L6-v2, attends to the words of a sentence",
    "plan": "tell how to share a call out to several machines",
}
_INTERRUPTED = 130  # as shells have it

_EPILOG = "exit codes: 0 all is well; 1 a check failed, or something that was asked for is missing; 2 wrong usage"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code; a wrong usage exits with 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given = ["check", *given]
    args = _parser(given[0]).parse_args(given)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        warn("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the chosen command alone: the modules of the others are not loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m attention_xp",
        description="Attention on this machine. Without a command, check is run.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"attention_xp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG)
        if name == chosen:
            module = import_module(f"attention_xp._command.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
