"""All calls of torch's ``scaled_dot_product_attention`` in a program, computed here."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from attention_xp.interop.torch import _sdpa

__all__ = ["Routed", "route"]


class Routed:
    """What `route` counts."""

    def __init__(self) -> None:
        self.calls = 0
        """How many calls came here."""

    def __repr__(self) -> str:
        return f"Routed(calls={self.calls})"


_lock = threading.Lock()
_routes: list[Routed] = []  # of all threads
_fast: list[bool] = [True]  # whether torch's modules may take their native fast path when no route is on
# What is called when no route is on.
_own: list[Callable[..., torch.Tensor]] = [functional.scaled_dot_product_attention]
_thread = threading.local()


@contextmanager
def route() -> Iterator[Routed]:
    """Let every call of ``torch.nn.functional.scaled_dot_product_attention`` come here, by whomever it is made.

    Those of ``torch.nn.MultiheadAttention`` with ``need_weights=False``, of ``torch.nn.TransformerEncoder`` and
    ``torch.nn.Transformer`` too, which in evaluation leave their native fast path for it. A context manager,
    ``with route():``, and a decorator, ``@route()``.

    Yields
    ------
    Routed
        Its ``calls`` counts what has come here.

    Notes
    -----
    Three things are done. A ``TorchFunctionMode`` sees what is called by any name; torch's modules are told to leave their fast
    path; what torch calls while it looks at one function, such as that of ``MultiheadAttention``, the mode does not see:
    there the function in ``torch.nn.functional`` is replaced. All are undone at the end, after an exception too. Routes
    may be nested, and then count the same calls.

    - A mode belongs to a thread: enter a route in each. In other threads, meanwhile, only what is looked up in
      ``torch.nn.functional`` comes here.
    - A checkpoint computes once more during ``backward()``: call that inside the route too, or torch, which then computes by
      itself, finds other tensors than were kept, and raises ``CheckpointError``. While gradients are computed the mode is off:
      what is called in a checkpoint must be looked up in ``torch.nn.functional``, as torch's modules do.
    - A function that is compiled is compiled once for inside and once for outside; inside, its calls may not be counted.
    - With ``need_weights=True``, its default, ``MultiheadAttention`` multiplies by itself and calls no function. Programs of
      TorchScript call torch's own, also those made inside; and ``flex_attention`` has an adapter of its own.

    Examples
    --------
    >>> import torch
    >>> from attention_xp.interop.torch import route
    >>> layer = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
    >>> with route() as routed:
    ...     output = layer(torch.ones(1, 3, 8))
    >>> routed
    Routed(calls=1)
    """
    routed = Routed()
    with _lock:
        if not _routes:
            _own[0] = functional.scaled_dot_product_attention
            _let_torch_look()
            functional.scaled_dot_product_attention = _routed
            _fast[0] = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)  # also where the mode is not seen: in compiled code
        _routes.append(routed)
    is_inner = getattr(_thread, "has_mode", False)
    try:
        with nullcontext() if is_inner else _Mode():
            _thread.has_mode = True
            yield routed
    finally:
        if not is_inner:  # tasks of one thread may end in any order
            _thread.has_mode = False
        with _lock:
            _routes.remove(routed)
            if not _routes:
                if functional.scaled_dot_product_attention is _routed:  # what somebody else has put there stays
                    functional.scaled_dot_product_attention = _own[0]
                torch.backends.mha.set_fastpath_enabled(_fast[0])


def _let_torch_look() -> None:
    """Let torch make the tables that it keeps for good from what its modules hold, before that is replaced."""
    torch.overrides.get_overridable_functions()  # without it, Dynamo would take subclasses and modes to the kernel
    torch.jit._builtins._register_builtin(_routed, "aten::scaled_dot_product_attention")  # programs of TorchScript


def _routed(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Stand in for torch's function; what has kept it calls torch's again once all routes have ended."""
    tensors = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
    if has_torch_function(tensors):  # the mode, which then is off while we compute
        return handle_torch_function(_routed, tensors, *args, **kwargs)
    return _computed(args, kwargs)


def _computed(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    if not _routes:
        return _own[0](*args, **kwargs)
    if not torch.compiler.is_compiling():  # what is compiled is called later, and not from here
        with _lock:
            for routed in _routes:
                routed.calls += 1
    return _sdpa.scaled_dot_product_attention(*args, **kwargs)


class _Mode(TorchFunctionMode):  # type: ignore[misc]
    """Sees every function of torch that Python calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or ours in the place of one."""
        if func is torch._C._nn.scaled_dot_product_attention:
            return _computed(args, kwargs or {})
        return func(*args, **(kwargs or {}))
