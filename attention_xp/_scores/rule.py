"""What masks and biases have in common: values made of attributes, some of them arrays."""

from collections.abc import Collection, Iterator, Mapping
from inspect import Signature, signature
from typing import Any, ClassVar, Self, TypeVar

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.host import as_numpy
from attention_xp._backend.libraries import common_namespace, is_numpy, library_name
from attention_xp._backend.pytrees import register, tell
from attention_xp._checks.arrays import check_placement
from attention_xp._scores.attributes import Attributed, leaves_of
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._scores.identity import identity
from attention_xp._typing import Array, Device, Namespace

__all__ = ["Rule", "arrays_of", "check_library_and_place", "forget_promises", "on_host", "short"]

RuleT = TypeVar("RuleT", bound="Rule")


class _OfInit:
    """The signature of a class as its ``__init__`` has it: ``help`` and Sphinx would show that of ``__new__`` instead."""

    def __get__(self, rule: object, kind: type) -> Signature:
        if rule is not None:
            raise AttributeError("__signature__")
        if kind.__init__ is object.__init__:  # type: ignore[misc]
            return Signature()
        _, *own = signature(kind.__init__).parameters.values()  # type: ignore[misc]
        return Signature(own)


class Rule(Attributed):
    """A mask or a bias as a value: a pytree of JAX, equal to another one where all attributes are."""

    __signature__ = _OfInit()

    # What the axes of its arrays belong to, by attribute: b batch items, h heads, q rows, "." neither. Letters are lined up
    # from the right, and b stands for all batch axes. A device that has some batch items and heads takes its part by them.
    _axes: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls, _split, _joined)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make an instance, and register its class with JAX."""
        tell(cls)
        return super().__new__(cls)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and identity(self) == identity(other))

    def __hash__(self) -> int:
        return hash(identity(self))

    def to(self, device: Device) -> Self:
        """Return the same rule with its arrays on a device.

        Parameters
        ----------
        device : device
            As the library of the arrays calls it, such as ``"cuda"`` of torch. Arrays of NumPy stay where they are,
            and serve every device.

        Returns
        -------
        Mask or Bias
            A rule of the same class; rules that it is made of move along.
        """
        template, arrays = freeze(self)
        return thaw(template, [_moved(array, device) for array in arrays])  # type: ignore[no-any-return]

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check that the arrays of a rule suit a query, before anything is computed.

        Parameters
        ----------
        xp : module
            The array library of the query.
        query : array
            For the device.
        batch : tuple of int
            The batch shape of the scores.
        heads : int or None
            Number of query heads; None where there is no heads axis.

        Raises
        ------
        TypeError
            If an array belongs to another library, other than NumPy.
        ValueError
            If an array lies on another device.
        """
        for name, array in arrays_of(self):
            check_library_and_place(xp, query, name, array)


def _split(rule: Rule) -> tuple[list[Any], Any]:
    """Return the arrays of a rule and the rest, as JAX's pytrees want them."""
    template, arrays = freeze(rule)
    return arrays, template


def _joined(template: Any, arrays: Any) -> Any:
    return thaw(template, list(arrays))


def _moved(array: Any, device: Device) -> Any:
    from array_api_compat import to_device  # noqa: PLC0415  # where nothing moves, nothing is loaded

    return array if is_numpy(array) else to_device(array, device)


def forget_promises(kind: type, answer: str, promises: Collection[str]) -> None:
    """Set promises of a class back to their defaults where it has inherited them from a class with another `answer`.

    Otherwise a class that redefines the answer, itself or by a mixin, would still promise what holds for that of its base.
    """
    own = getattr(kind, answer)
    *_, none = (vars(base)[answer] for base in kind.__mro__ if answer in vars(base))  # of the class of all rules
    for name in promises:
        makers = [base for base in kind.__mro__ if name in vars(base)]
        if makers and getattr(makers[0], answer, own) not in (own, none):
            setattr(kind, name, vars(makers[-1])[name])  # that of the class of all rules


def on_host(rule: RuleT) -> RuleT:
    """Return the same rule with NumPy arrays."""
    template, arrays = freeze(rule)
    return thaw(template, list(map(as_numpy, arrays)))  # type: ignore[no-any-return]


def arrays_of(rule: Rule) -> Iterator[tuple[str, Array]]:
    """Yield the arrays that a rule itself holds, by name."""
    for name, value in leaves_of(rule):
        # Dynamo asks no size that it leaves open for an attribute.
        if not name.startswith("_") and not isinstance(value, int) and hasattr(value, "shape"):
            yield name, value


def check_library_and_place(xp: Namespace, query: Array, name: str, array: Array) -> None:
    """Check that an array is one of NumPy, or lies beside the query."""
    if is_numpy(array):
        return
    owner = common_namespace(**{name: array})
    if owner is not xp:
        raise TypeError(
            f"{name} is an array of {library_name(owner)}: expected NumPy or the library of the query, "
            f"{library_name(xp)}"
        )
    check_placement(xp, query=query, **{name: array})


def short(value: Any) -> str:
    """Name an attribute of a rule: arrays by dtype and shape, functions by name."""
    if hasattr(value, "shape"):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    return value.__name__ if hasattr(value, "__name__") else repr(value)
