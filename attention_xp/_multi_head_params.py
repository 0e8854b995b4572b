"""The projections of multi-head attention: their tuple, their initial values, their application."""

from typing import Any, NamedTuple, overload

from attention_xp._backend.autocast import may_differ
from attention_xp._backend.creation import place_of
from attention_xp._backend.dtypes import as_dtype, computation_dtype, dtype_name, is_alike
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._checks.numbers import check_count, check_flag
from attention_xp._public_types import Array, ArrayT, Generic, HeldT
from attention_xp._random.draws import check_rng, uniform
from attention_xp._typing import Device, DType, Namespace

__all__ = [
    "MultiHeadParams",
    "given_arrays",
    "head_counts",
    "head_widths",
    "init_multi_head_params",
    "project",
    "width_of_head",
]


class MultiHeadParams(NamedTuple, Generic[HeldT]):
    """Weights and biases of multi-head attention, applied as ``x @ w + b``.

    With heads of ``D``, and of ``Dv`` for the values, `w_q` is ``(d_model, H * D)``, `w_k` is ``(key width, Hkv * D)``,
    `w_v` is ``(value width, Hkv * Dv)`` and `w_o` is ``(H * Dv, output width)``: they tell the widths of the heads and of
    the output, which need not be those of the inputs. Biases, where there are any, have the length of what they are
    added to. Being a named tuple, it is a pytree to JAX.
    """

    w_q: HeldT
    w_k: HeldT
    w_v: HeldT
    w_o: HeldT
    b_q: HeldT | None = None
    b_k: HeldT | None = None
    b_v: HeldT | None = None
    b_o: HeldT | None = None


@overload
def init_multi_head_params(
    d_model: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    bias: bool = False,
    rng: Any = None,
    like: ArrayT,
) -> MultiHeadParams[ArrayT]: ...
@overload
def init_multi_head_params(
    d_model: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    bias: bool = False,
    rng: Any = None,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> MultiHeadParams: ...
def init_multi_head_params(
    d_model: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    bias: bool = False,
    rng: Any = None,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> MultiHeadParams:
    r"""Draw the weights of multi-head attention, Glorot-uniform; biases are zero.

    .. math:: w \sim U(-a, a), \qquad a = \sqrt{6 / (n_\mathrm{in} + n_\mathrm{out})}

    for a matrix :math:`w` of :math:`n_\mathrm{in}` rows and :math:`n_\mathrm{out}` columns.

    Parameters
    ----------
    d_model : int
        Width of input and output.
    num_heads : int
        ``H``; divides `d_model`.
    num_kv_heads : int, optional
        ``Hkv``; divides `num_heads`. Default: `num_heads`.
    bias : bool, default: False
        Whether there are biases.
    rng : int, random generator or JAX key, optional
        A seed (same numbers on every backend), or a generator of the library `xp`. Default: fresh
        entropy; required with JAX.
    xp : module, optional
        The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: NumPy.
    dtype : dtype or str, optional
        A dtype of `xp` or its name. Default: the default floating dtype of `xp`.
    device : device, optional
        Where to place the arrays. Default: the default device of `xp`.
    like : array, optional
        An array whose library, device and dtype to take, in place of `xp` and `device`; a given `dtype` wins.

    Returns
    -------
    MultiHeadParams
        The arrays, with ``None`` for absent biases. With ``dh = d_model // H``: `w_q` and `w_o`
        ``(d_model, d_model)``, `w_k` and `w_v` ``(d_model, Hkv * dh)``, and each bias as long as its output.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `d_model` is not divisible by `num_heads`, or `num_heads` by `num_kv_heads`, if `rng` is missing with JAX, or
        `like` comes with `xp` or `device`.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    Examples
    --------
    >>> from attention_xp import init_multi_head_params
    >>> params = init_multi_head_params(512, num_heads=8, num_kv_heads=2, rng=0, dtype="float32")
    >>> params.w_q.shape, params.w_k.shape, params.b_q
    ((512, 512), (512, 128), None)
    """
    heads, kv_heads = head_counts(num_heads, num_kv_heads)
    width = width_of_head(d_model, heads)
    has_bias = check_flag("bias", bias)
    xp, dtype, device = place_of(xp, dtype, device, like)
    check_rng(rng, xp)
    kv_width = kv_heads * width
    shapes_in_order = [(d_model, d_model), (d_model, kv_width), (d_model, kv_width), (d_model, d_model)]
    numbers = uniform(rng, (sum(n * m for n, m in shapes_in_order),), xp=xp, dtype=dtype, device=device)
    weights, start = [], 0
    for n, m in shapes_in_order:
        limit = (6.0 / (n + m)) ** 0.5
        weights.append(xp.reshape((2.0 * numbers[start : start + n * m] - 1.0) * limit, (n, m)))
        start += n * m
    biases = [xp.zeros(m, dtype=numbers.dtype, device=device) if has_bias else None for _, m in shapes_in_order]
    return MultiHeadParams(*weights, *biases)


def head_counts(num_heads: int, num_kv_heads: int | None) -> tuple[int, int]:
    """Return ``(H, Hkv)``, checked to divide."""
    heads = check_count("num_heads", num_heads)
    kv_heads = heads if num_kv_heads is None else check_count("num_kv_heads", num_kv_heads)
    if heads % kv_heads:
        raise ValueError(f"num_heads must be divisible by num_kv_heads, got num_heads {heads}, num_kv_heads {kv_heads}")
    return heads, kv_heads


def width_of_head(d_model: int, heads: int) -> int:
    """Return the width of each of the heads that a whole width is split into."""
    if check_count("d_model", d_model) % heads:
        raise ValueError(f"d_model must be divisible by num_heads, got d_model {d_model}, num_heads {heads}")
    return d_model // heads


def given_arrays(params: Any) -> dict[str, Array]:
    """Return the arrays that `params` holds, by name; ``None`` holds none."""
    if params is None:
        return {}
    if not isinstance(params, MultiHeadParams):
        raise TypeError(f"params must be MultiHeadParams, got {type(params).__name__}")
    for name in ("w_q", "w_k", "w_v", "w_o"):
        if getattr(params, name) is None:
            raise TypeError(f"params.{name} must be an array, got None")
    return {name: a for name, a in params._asdict().items() if a is not None}


def head_widths(
    xp: Namespace, arrays: dict[str, Array], params: dict[str, Array], d_model: int, heads: int, kv_heads: int
) -> tuple[int, int]:
    """Return ``(D, Dv)`` after the checks of the widths that projections, or without them the splitting into heads, rely on."""
    check_floating(xp, **arrays, **params)
    check_placement(xp, query=arrays["query"], **params)
    for name, a in arrays.items():
        if a.ndim < 2:
            raise ValueError(f"{name} needs at least 2 axes: expected {name} (B, S, d_model), {shapes(**{name: a})}")
    return (
        _of_params(xp, arrays, params, d_model, heads, kv_heads)
        if params
        else _of_inputs(arrays, d_model, heads, kv_heads)
    )


def _of_inputs(arrays: dict[str, Array], d_model: int, heads: int, kv_heads: int) -> tuple[int, int]:
    """Return the widths of the heads that the inputs are split into."""
    width = width_of_head(d_model, heads)
    for (name, a), expected in zip(arrays.items(), (d_model, kv_heads * width, kv_heads * width), strict=True):
        if a.shape[-1] != expected:
            letters = "d_model" if name == "query" else "num_kv_heads * (d_model // num_heads)"
            raise ValueError(
                f"{name} has width {a.shape[-1]} but without params it must be {letters} = {expected}: "
                f"expected {name} (B, S, {expected}), {shapes(**{name: a})}"
            )
    return width, width


def _of_params(
    xp: Namespace, arrays: dict[str, Array], params: dict[str, Array], d_model: int, heads: int, kv_heads: int
) -> tuple[int, int]:
    """Return the widths of the heads that the projections make."""
    query = arrays["query"]
    if query.shape[-1] != check_count("d_model", d_model):
        raise ValueError(
            f"query has width {query.shape[-1]} but d_model is {d_model}: expected query (B, Sq, d_model), {shapes(query=query)}"
        )
    D, Dv = _made_by(params, "w_q", "H * D", heads), _made_by(params, "w_v", "Hkv * Dv", kv_heads)
    key, value, output = arrays["key"].shape[-1], arrays["value"].shape[-1], params["w_o"].shape[-1:]
    expected = {
        "w_q": ("(d_model, H * D)", (d_model, heads * D)),
        "w_k": ("(key width, Hkv * D)", (key, kv_heads * D)),
        "w_v": ("(value width, Hkv * Dv)", (value, kv_heads * Dv)),
        "w_o": ("(H * Dv, any)", (heads * Dv, *output)),
        "b_q": ("(H * D,)", (heads * D,)),
        "b_k": ("(Hkv * D,)", (kv_heads * D,)),
        "b_v": ("(Hkv * Dv,)", (kv_heads * Dv,)),
        "b_o": ("(output width,)", output),
    }
    for name, a in params.items():
        letters, shape = expected[name]
        if tuple(a.shape) != shape:
            raise ValueError(
                f"params.{name} does not fit: expected {name} {letters} = {shape}, {shapes(**arrays, **{name: a})}"
            )
        if not is_alike(a.dtype, query.dtype) and not may_differ(xp, query, a):
            raise TypeError(
                f"params.{name} is {dtype_name(a.dtype)} but query is {dtype_name(query.dtype)}: expected one dtype"
            )
    return D, Dv


def _made_by(params: dict[str, Array], name: str, letters: str, heads: int) -> int:
    """Return the width of each of the heads that a projection makes."""
    weight = params[name]
    if weight.ndim != 2 or weight.shape[1] % heads:
        counted = "num_heads" if name == "w_q" else "num_kv_heads"
        raise ValueError(
            f"params.{name} must have columns divisible by {counted} = {heads}: expected {name} (width, {letters}), "
            f"{shapes(**{name: weight})}"
        )
    return int(weight.shape[1]) // heads


def project(x: Array, weight: Array | None, bias: Array | None, xp: Namespace) -> Array:
    """Return ``x @ weight + bias``; no weight is the identity."""
    if weight is None:
        return x
    dtype = computation_dtype(xp, x.dtype)
    y = xp.matmul(as_dtype(xp, x, dtype), as_dtype(xp, weight, dtype))
    if bias is not None:
        y = y + filled_up(xp, as_dtype(xp, bias, dtype), y.ndim)
    return as_dtype(xp, y, x.dtype)
