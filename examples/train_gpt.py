"""Train a small GPT on Shakespeare's sonnets, character by character, in NumPy alone, PyTorch or JAX.

``python examples/train_gpt.py --steps 50``; what it needs is in `README.md` beside it.

The model is in the folder `gpt`: `in_numpy.py` with every gradient by hand, `in_torch.py` and `in_jax.py` with those of the
library. All three start from the same weights and see the same batches.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from gpt.text import Text
from gpt.training import BACKENDS, Model, open_model, train, write
from gpt.weights import Config, initial_weights
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SONNETS = Path(__file__).with_name("data") / "sonnets.txt"
TOLERANCE = 1e-4  # between the curves of the libraries, in float32
CONSOLE = Console(stderr=True)

Curve = list[float]


def learn(backend: str, text: Text, config: Config, steps: int, seed: int) -> tuple[Model, Curve]:
    """Train in one library, with a bar on the terminal, and print what came of it."""
    model = open_model(backend, initial_weights(config, len(text.alphabet), seed), config)
    curve, times = [], [time.perf_counter()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bar = progress.add_task(backend, total=steps)
        for loss in train(model, text, config, steps, seed):
            curve.append(loss)
            times.append(time.perf_counter())
            progress.update(bar, advance=1, description=f"{backend}, loss {loss:.3f}")
    # The median: JAX compiles in the first step.
    pace = sorted(after - before for before, after in pairwise(times))[steps // 2]
    print(f"{backend}: loss {curve[0]:.3f} -> {curve[-1]:.3f} in {steps} steps of {1000 * pace:.0f} ms")
    return model, curve


def difference(curves: Sequence[Curve]) -> float:
    """Return how far the curves are apart where they are furthest apart."""
    return max(max(losses) - min(losses) for losses in zip(*curves, strict=True))


def plot(curves: dict[str, Curve], file: Path) -> None:
    """Draw the losses."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # for this alone

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for place, (backend, curve) in enumerate(curves.items()):
        width = 2 * (len(curves) - place)  # equal curves would hide each other
        axes.plot(range(1, len(curve) + 1), curve, label=backend, linewidth=width)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file)


def read(file: Path, prompt: str, config: Config) -> Text:
    """Read the text, or end with a line that says what is wrong with it."""
    try:
        text = Text.read(file)
        text.encode(prompt)
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {file} cannot be read: {error}") from None
    except ValueError:
        strange = "".join(sorted(set(prompt) - set(text.alphabet)))
        raise SystemExit(f"error: the prompt has characters that {file} has not: {strange!r}") from None
    if len(text.characters) <= config.context:
        raise SystemExit(f"error: {file}: expected more than {config.context} characters, got {len(text.characters)}")
    return text


def positive(text: str) -> int:
    """Return the number that an argument stands for."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def temperature(text: str) -> float:
    """Return the number that an argument stands for."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=SONNETS, help="text to learn; default: the sonnets")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--backend", choices=BACKENDS, default="numpy", help="default: %(default)s")
    which.add_argument("--compare", action="store_true", help="train in all three and compare the losses")
    parser.add_argument("--steps", type=positive, help="default: 500, or 50 with --compare")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and text; default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the losses, such as loss.png")
    parser.add_argument("--prompt", default="Shall I compare thee", help="what to go on from; default: %(default)r")
    parser.add_argument("--characters", type=positive, default=400, help="to write at the end; default: %(default)s")
    parser.add_argument("--temperature", type=temperature, default=0.7, help="lower is tamer; default: %(default)s")
    arguments = parser.parse_args(argv)
    if not arguments.prompt:
        parser.error("--prompt needs a character at least")
    if arguments.seed < 0:
        parser.error(f"--seed is at least 0, got {arguments.seed}")
    arguments.steps = arguments.steps or (50 if arguments.compare else 500)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Train, draw and write; 1 where libraries were compared and disagree."""
    arguments, config = parse(argv), Config()
    text = read(arguments.file, arguments.prompt, config)
    curves = {}
    for backend in BACKENDS if arguments.compare else [arguments.backend]:
        model, curves[backend] = learn(backend, text, config, arguments.steps, arguments.seed)
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.compare:
        apart = difference(list(curves.values()))
        print(f"largest difference of the losses: {apart:.1e}, allowed: {TOLERANCE:.0e}")
        return int(not apart <= TOLERANCE)  # NaN is a failure
    print(f"\n{arguments.prompt}", end="", flush=True)
    for character in write(
        model, text, config, arguments.prompt, arguments.characters, arguments.temperature, arguments.seed
    ):
        print(character, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
