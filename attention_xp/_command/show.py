"""``show``: the attention of a small language model for a sentence, as a page for the browser or as arrays."""

import argparse
import os
import tempfile
import webbrowser
from pathlib import Path

import numpy as np

from attention_xp._command.minilm import HOW_TO_ADD, MissingModelError, attention_of, find_model
from attention_xp._command.screen import say, warn
from attention_xp.viz import head_view

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = f"{parser.description} It reads English, in lower case, and needs: {HOW_TO_ADD}."
    parser.add_argument("sentence", type=_sentence, metavar="SENTENCE", help="what the model reads, in quotes")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the page to this HTML file, or, where its name ends in .npz, the arrays tokens, of S, and weights, "
        "(layers, heads, S, S), for numpy.load; default: open the page in the browser",
    )
    parser.add_argument("--open", action="store_true", help="open the page that --output names, too")
    parser.add_argument("--layer", type=int, default=0, help="the layer to show first, from 0 to 5; default: 0")
    parser.add_argument("--head", type=int, default=0, help="the head to show first, from 0 to 11; default: 0")
    parser.set_defaults(parser=parser)


def _sentence(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected some words")
    return text


def run(args: argparse.Namespace) -> int:
    """Show a sentence; return 1 where the model is not installed, or no browser is found."""
    if args.output is not None and not args.output.absolute().parent.is_dir():
        args.parser.error(f"there is no folder {args.output.absolute().parent}")
    has_arrays = args.output is not None and args.output.suffix == ".npz"
    if has_arrays and args.open:
        args.parser.error("--open is for a page: a browser cannot show arrays")
    try:
        folder = find_model()
    except MissingModelError as error:
        warn(f"{error}: show runs the sentence encoder all-MiniLM-L6-v2. Add it with: {HOW_TO_ADD}")
        return 1
    try:
        layers, tokens = attention_of(args.sentence, folder)
        view = head_view(layers, tokens, layer=args.layer, head=args.head)
    except ValueError as error:
        args.parser.error(str(error))
    path = args.output or _temporary()
    try:
        if has_arrays:
            np.savez_compressed(path, tokens=np.asarray(tokens), weights=np.concatenate(layers))
        else:
            view.save(path)
    except OSError as error:
        args.parser.error(f"{path} cannot be written: {error.strerror}")
    say(f"{len(layers)} layers of {layers[0].shape[1]} heads, {len(tokens)} tokens: {path}")
    if args.output is not None and not args.open:
        return 0
    if not webbrowser.open(path.absolute().as_uri()):
        warn("no browser was found here: open the file in a browser of 2024 or later")
        return 1
    return 0


def _temporary() -> Path:
    """Return a new file, which outlives the command: the browser reads it later."""
    handle, name = tempfile.mkstemp(prefix="attention-", suffix=".html")
    os.close(handle)
    return Path(name)
