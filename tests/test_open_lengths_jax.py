"""Lengths that JAX's exporter leaves open: one program serves all of them, also those shorter than a tile."""

import importlib
from functools import partial

import numpy as np
import pytest

import attention_xp as ax
from attention_xp import biases, linear, masks
from tests._inputs import normal
from tests._public_calls import every_option
from tests._transforms import assert_same

pytestmark = pytest.mark.backends("jax")
TILE = (8, 4)
SIZES = [(2, 5, 7), (1, 19, 3), (3, 1, 21)]  # batch items, rows and keys: of less than a tile, and of several


def of_sizes(b, q, k):
    """The shapes of query, key and value."""
    return [(b, 4, q, 8), (b, 2, k, 8), (b, 2, k, 8)]


def open_program(jax, function, shapes):
    """Export a function of arrays of some shapes, given as dtypes and functions of the sizes; and read it again."""
    export = importlib.import_module("jax.export")
    sizes = export.symbolic_shape("b, q, k")
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes(*sizes)]
    exported = export.export(jax.jit(function))(*arguments)
    try:
        importlib.import_module("flatbuffers")
    except ImportError:
        return exported.call  # the program itself, and not what can be written to a file
    return export.deserialize(exported.serialize(vjp_order=1)).call


def check(library, function, shapes, how, sizes):
    """Compare output and gradients with those of the formula."""
    jax, rng = importlib.import_module("jax"), np.random.default_rng(0)
    call = open_program(jax, partial(function, **how), shapes)

    def made(shape, dtype):
        values = rng.integers(0, 9, shape) if dtype == "int32" else rng.standard_normal(shape)
        return library.array(values > -0.5 if dtype == "bool" else values, dtype)

    def results(function, arrays):
        floating = [i for i, x in enumerate(arrays) if x.dtype == "float32"]

        def loss(*arrays):
            output = function(*arrays)
            return (output * jax.numpy.sin(output)).sum(), output

        slopes, output = jax.jit(jax.grad(loss, argnums=floating, has_aux=True))(*arrays)
        return output, *slopes

    for some in sizes:
        arrays = [made(*argument) for argument in shapes(*some)]
        assert_same(results(call, arrays), results(partial(function, impl="dense"), arrays))


def operands(b, q, k):
    """The arguments of `every_option`."""
    arrays = [*of_sizes(b, q, k), (4, q, k), (4,), (4,)]
    query, key, value, bias, sinks, factor = ((shape, "float32") for shape in arrays)
    return [query, key, value, ((b, 1, q, k), "bool"), bias, sinks, ((b,), "int32"), factor]


@pytest.mark.parametrize("how", [{"impl": "dense"}, {"impl": "tiled", "tile": TILE}], ids=str)
def test_every_option(library, how):
    check(library, every_option, operands, how, SIZES)


def under_rules(q, k, v, q_ids, k_ids, slopes, table, **how):
    """Attention to the last keys, under rules that look things up."""
    offset = k.shape[-2] - q.shape[-2]
    bias = biases.AlibiBias(slopes)
    mask = masks.SegmentMask(q_ids, k_ids) | masks.WindowMask(3, 0)
    first = ax.flash_attention(q, k, v, mask, bias=bias, query_offset=0, **how)
    return first + ax.flash_attention(
        q, k, v, bias=biases.RelativePositionBias(table), is_causal=True, query_offset=offset, **how
    )


def test_rules(library):
    def shapes(b, q, k):
        ids = [((b, q), "int32"), ((b, k), "int32")]
        return [*((shape, "float32") for shape in of_sizes(b, q, k)), *ids, ((4,), "float32"), ((8, 4), "float32")]

    check(library, under_rules, shapes, {"impl": "tiled", "tile": TILE}, SIZES[:2])


def test_a_tile_is_chosen(library):
    def shapes(b, q, k):
        return [(shape, "float32") for shape in of_sizes(b, q, k)]

    check(library, partial(ax.flash_attention, window=(2, 1), query_offset=0), shapes, {"impl": "auto"}, SIZES[:1])


def test_weights_and_statistics(library):
    jax = importlib.import_module("jax")

    def function(q, k, v):
        output, weights = ax.scaled_dot_product_attention(q, k, v, impl="tiled")
        return output, weights, *ax.attention_statistics(q, k, impl="tiled")

    def shapes(b, q, k):
        return [(shape, "float32") for shape in of_sizes(b, q, k)]

    call = open_program(jax, function, shapes)
    arrays = [library.array(normal(*shape)) for shape in of_sizes(*SIZES[0])]
    assert_same(tuple(call(*arrays)), function(*arrays))


def test_what_comes_beside_attention(library):
    jax = importlib.import_module("jax")

    def function(x):
        turned = ax.rotary_embedding(x), ax.rotary_embedding(x, scaling=ax.DynamicNTKScaling(2.0, 4))
        return *turned, ax.softmax(x), ax.dropout(x, 0.5, rng=1), linear.linear_attention(x, x, x)

    call = open_program(jax, function, lambda b, q, k: [((b, 2, q, 8), "float32")])
    for length in (3, 9):
        x = library.array(normal(2, 2, length, 8))
        assert_same(tuple(call(x)), function(x))


def test_causal_linear_attention_needs_a_length(library):
    jax = importlib.import_module("jax")
    with pytest.raises(ValueError, match=r"needs a length that is known.*query \(b, 2, q, 8\)"):
        open_program(
            jax,
            lambda x: linear.linear_attention(x, x, x, is_causal=True),
            lambda b, q, k: [((b, 2, q, 8), library.namespace().float32)],
        )
