"""Who takes part: each contender is declared once, with the modules it needs and how it prepares a call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.case import Case

__all__ = ["Call", "Contender", "absent", "contender", "contenders", "find"]

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """A way to compute a case; `prepare` gets it and the modules, and returns a call that waits for its result."""

    name: str
    prepare: Callable[..., Call]
    modules: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    compiled_memory: Callable[..., int] | None = None

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.modules if find_spec(name.partition(".")[0]) is None]

    def call(self, case: Case) -> Call:
        """Return the prepared call; imports the libraries of the contender."""
        return self.prepare(case, *map(import_module, self.modules))

    def memory(self, case: Case) -> int | None:
        """Return the bytes that a compiler says it needs beyond the input; ``None`` where nothing says so."""
        return self.compiled_memory and self.compiled_memory(case, *map(import_module, self.modules))


_REGISTRY: dict[str, Contender] = {}


def contender(
    name: str, *modules: str, environment: Mapping[str, str] | None = None, memory: Callable[..., int] | None = None
) -> Callable[[Callable[..., Call]], Callable[..., Call]]:
    """Declare a contender: the decorated function prepares its calls."""

    def register(prepare: Callable[..., Call]) -> Callable[..., Call]:
        if name in _REGISTRY:
            raise ValueError(f"two contenders are called {name!r}")
        _REGISTRY[name] = Contender(name, prepare, modules, environment or {}, memory)
        return prepare

    return register


def contenders() -> dict[str, Contender]:
    """Return all contenders by name."""
    import_module("benchmarks.ours"), import_module("benchmarks.peers")
    return _REGISTRY


def find(name: str) -> Contender:
    """Return the contender of this name."""
    return contenders()[name]


def absent(*names: str) -> str | None:
    """Return why these contenders cannot run, ``None`` when they can."""
    missing = sorted({module for name in names for module in find(name).missing()})
    return f"not installed: {', '.join(missing)}" if missing else None
