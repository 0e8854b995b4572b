"""Lengths that torch leaves open: one graph serves all of them."""

import importlib

import numpy as np
import pytest

import attention_xp as ax
from attention_xp import biases, linear, masks
from attention_xp._backend.libraries import array_namespace
from tests._inputs import normal
from tests._quick import some_rare
from tests._transforms import assert_same

pytestmark = [
    pytest.mark.backends("torch"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),  # torch's exporter
]


def count_graphs(library, function, lengths=(6, 20, 33)):
    """Compile a function of ``(2, 4, S, 8)``, compare it at some lengths, and return how many graphs there are."""
    torch, graphs = importlib.import_module("torch"), []
    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True
    )
    for length in lengths:
        x = library.array(normal(2, 4, length, 8))
        assert_same(compiled(x), function(x))
    return len(graphs)


@pytest.mark.parametrize("impl", ["dense", "tiled", "fused", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"softcap": 2.0}, {"dropout_rate": 0.5, "rng": 1}], ids=str
)
def test_attention(library, impl, options):
    """Also where plain calls of other lengths come between."""
    if impl == "fused" and options.keys() - {"is_causal"}:
        pytest.skip("torch's kernel knows nothing of it")
    assert count_graphs(library, lambda x: ax.flash_attention(x, x, x, impl=impl, **options)) == 1


ATTENTION = {  # functions of x and other arrays, and those
    "weights": (lambda x, **how: ax.scaled_dot_product_attention(x, x, x, **how), ()),
    "heads": (
        lambda x, *w, **how: ax.multi_head_self_attention(x[:, 0], 2, 8, params=ax.MultiHeadParams(*w), **how),
        tuple(normal(8, 8, seed=i) for i in range(4)),
    ),
    "cross": (lambda x, **how: ax.cross_attention(x[:, 0], x[:, 1], 8, **how), ()),
    "last rows": (
        lambda x, **how: ax.flash_attention(x[:, :, -3:], x, x, is_causal=True, query_offset=x.shape[-2] - 3, **how),
        (),
    ),
    "lengths": (lambda x, n, **how: ax.flash_attention(x, x, x, key_lengths=n, **how), (np.asarray([3, 4]),)),
    "rules": (
        lambda x, **how: ax.flash_attention(
            x, x, x, masks.SegmentMask((x[0, 0, :, 0] > 0).int()) | masks.PrefixMask(3) & masks.WindowMask(4, 0), **how
        ),
        (),
    ),
    "slopes": (lambda x, s, **how: ax.flash_attention(x, x, x, bias=biases.AlibiBias(s), **how), (normal(4) ** 2,)),
    "buckets": (
        lambda x, t, **how: ax.flash_attention(x, x, x, bias=biases.RelativePositionBias(t), **how),
        (normal(8, 4),),
    ),
    "relative scores": (
        lambda x, e, **how: ax.flash_attention(x, x, x, bias=biases.relative_position_scores(x, e, x.shape[-2]), **how),
        (normal(5, 8),),
    ),
    "gradients": (lambda x, **how: tuple(ax.attention_vjp(x, x, x, is_causal=True, **how)[1](x)[:3]), ()),
    "statistics": (lambda x, **how: tuple(ax.attention_statistics(x, x, is_causal=True, **how)), ()),
    "parts": (
        lambda x, **how: ax.merge_attention(
            *zip(*(ax.flash_attention(x, y, y, return_lse=True, **how) for y in (x, 2.0 * x)), strict=True)
        ),
        (),
    ),
    "packed": (
        lambda x, n, **how: ax.varlen_attention(*(x[0].permute(1, 0, 2),) * 3, n, is_causal=True, **how),
        (np.asarray([0, 2, 4]),),
    ),
}


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize(
    ("function", "others"), some_rare(ATTENTION, {"last rows", "slopes", "parts", "cross"}.__contains__)
)
def test_every_attention_function(library, function, others, impl):
    made = [library.array(x) for x in others]
    assert count_graphs(library, lambda x: function(x, *made, impl=impl)) == 1


def created(x):
    """Encodings and masks of a length that is given."""
    where = {"xp": array_namespace(x), "dtype": "float32", "device": x.device}
    mask, encoding = ax.create_causal_mask(x.shape[-2], **where), ax.positional_encoding(x.shape[-2], 8, **where)
    return x + encoding, x @ x.mT + mask, ax.learned_positional_encoding(x.shape[-2], 8, rng=0, **where)


OTHER_CALLS = {
    "linear": lambda x: linear.linear_attention(x, x, x),
    "softmax": ax.softmax,
    "normalization": lambda x: ax.layer_normalization(x, x[0, 0, 0], x[0, 0, 1]),
    "dropout": lambda x: ax.dropout(x, 0.5, rng=1),
    "rotary": ax.rotary_embedding,
    "scaled rotary": lambda x: tuple(
        ax.rotary_embedding(x, scaling=scaling)
        for scaling in (ax.YarnScaling(4.0, 16), ax.Llama3Scaling(8.0, 1.0, 4.0, 16), ax.NTKScaling(3.0))
    ),
    "shift": lambda x: biases.relative_shift(x @ x.mT),
    "padding": lambda x: ax.create_padding_mask(x[:, 0, :, 0].int(), dtype="float32"),
    "created": created,
}


@pytest.mark.parametrize("function", OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_every_other_function(library, function):
    assert count_graphs(library, function) == 1


def test_causal_linear_attention(library):
    """One graph for as many chunks."""

    def attend(x):
        return linear.linear_attention(x, x, x, is_causal=True, chunk_size=16)

    assert count_graphs(library, attend, (18, 25, 31)) == 1


def test_gradients_of_as_many_tiles(library):
    def slope(x):
        x = x[0]
        return ax.attention_vjp(x, x, x, impl="tiled", is_causal=True)[1](x).key

    assert count_graphs(library, slope, (1030, 1100, 1200)) == 1  # three blocks of rows


def exported(library, heads, strict, **options):
    """Export attention with open lengths, and compare it at two of them."""
    torch = importlib.import_module("torch")

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return ax.flash_attention(q, k, v, **options)

    made = [library.array(x) for x in (normal(2, 4, 6, 8), normal(2, heads, 6, 8), normal(2, heads, 6, 8))]
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(Attention(), tuple(made), dynamic_shapes=({2: length},) * 3, strict=strict)
    for n in (6, 31):
        arrays = [library.array(normal(*x.shape[:2], n, 8)) for x in made]
        assert_same(program.module()(*arrays), Attention()(*arrays))


@pytest.mark.parametrize("impl", ["dense", "fused", "auto"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_export(library, impl, options):
    exported(library, 2, True, impl=impl, **options)
    exported(library, 4 if impl == "dense" else 2, False, impl=impl, **options)


def test_export_of_what_torch_has_no_word_for(library):
    exported(library, 2, True, softcap=2.0)
    exported(library, 4, False, softcap=2.0)


def test_export_says_what_cannot_be_left_open(library):
    with pytest.raises(ValueError, match=r"impl='tiled' cannot compute this call: .* fixed number of tiles"):
        exported(library, 4, False, impl="tiled")
    with pytest.raises(importlib.import_module("torch")._dynamo.exc.Unsupported, match="fixed number of tiles"):
        exported(library, 4, True, impl="tiled")
    for impl in ("auto", "dense"):
        with pytest.raises(ValueError, match=rf"impl='{impl}' cannot compute this call: .* strict=True"):
            exported(library, 2, False, impl=impl, softcap=2.0)
