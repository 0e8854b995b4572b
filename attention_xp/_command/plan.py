"""``plan``: how to share a call out to several machines; the work is done by `attention_xp.distributed`."""

import argparse
from importlib import import_module
from typing import Any

from attention_xp._command.screen import warn

__all__ = ["add_arguments", "run"]

_HOME = "attention_xp.distributed._plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    home = _home()
    if home is not None:
        home.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan; return 1 where this version cannot."""
    home = _home()
    if home is None:
        warn("plan is not part of this version of attention_xp")
        return 1
    code: int = home.run(args) or 0
    return code


def _home() -> Any:
    try:
        return import_module(_HOME)
    except ModuleNotFoundError as error:
        if error.name != _HOME:
            raise
        return None
