"""Scores of queries with embeddings of distances, and their alignment with the keys."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.biases import relative_position_scores, relative_shift
from tests._assertions import assert_close
from tests._autodiff import check
from tests._backends import to_numpy
from tests._inputs import normal
from tests._transforms import compiled_and_mapped
from tests._wrong import Wrong, check as check_wrong

SHAPES = [(5, 4), (2, 5, 4), (2, 3, 5, 4), (2, 1, 3, 5, 4), (0, 4), (2, 3, 0, 4)]


def reference(query, embeddings, key_len, offset=0):
    """Pair by pair; the offset broadcasts against the leading axes."""
    reach = embeddings.shape[0] // 2
    scores = np.zeros((*query.shape[:-1], key_len))
    for at in np.ndindex(*query.shape[:-1]):
        position = at[-1] + np.broadcast_to(offset, query.shape[:-2])[at[:-1]]
        for j in range(key_len):
            scores[(*at, j)] = query[at] @ embeddings[np.clip(j - position, -reach, reach) + reach]
    return scores


@pytest.mark.parametrize("key_len", [0, 1, 7])
@pytest.mark.parametrize("rows", [1, 5, 31])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pair_meets_the_embedding_of_its_distance(library, make, shape, rows, key_len):
    query, embeddings = normal(*shape), normal(rows, 4)
    actual = relative_position_scores(make(query), make(embeddings), key_len)
    assert_close(actual, reference(query, embeddings, key_len), library)


@pytest.mark.parametrize("offset", [-3, 2, 100])
def test_one_offset(library, make, offset):
    query, embeddings = normal(2, 3, 5, 4), normal(7, 4)
    expected = reference(query, embeddings, 6, offset)
    assert_close(relative_position_scores(make(query), make(embeddings), 6, query_offset=offset), expected, library)
    given = make(np.asarray(offset))
    assert_close(relative_position_scores(make(query), make(embeddings), 6, query_offset=given), expected, library)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((2, 5, 4), (2,)), ((2, 3, 5, 4), (2,)), ((2, 3, 2, 5, 4), (3,)), ((2, 3, 2, 5, 4), (2, 1))],
    ids=str,
)
def test_offsets_of_batch_items(library, make, shape, batch):
    query, embeddings = normal(*shape), normal(7, 4)
    offset = np.arange(np.prod(batch)).reshape(batch) * 3 - 1
    expected = reference(query, embeddings, 6, offset[..., None] if len(shape) > 3 else offset)
    actual = relative_position_scores(make(query), make(embeddings), 6, query_offset=make(offset))
    assert_close(actual, expected, library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_is_kept(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    query, embeddings = make(normal(2, 3, 5, 4), dtype), make(normal(7, 4), dtype)
    expected = reference(to_numpy(query).astype(float), to_numpy(embeddings).astype(float), 6)
    assert_close(relative_position_scores(query, embeddings, 6), expected, library, dtype=dtype)


def test_distances_as_in_wav2vec2_bert(library, make):
    torch = pytest.importorskip("torch")
    bert = pytest.importorskip("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
    settings = bert.Wav2Vec2BertConfig(
        hidden_size=12, num_attention_heads=3, position_embeddings_type="relative_key", left_max_position_embeddings=5,
        right_max_position_embeddings=5,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = bert.Wav2Vec2BertSelfAttention(settings).eval()
    layer.linear_out = torch.nn.Identity()
    x = normal(2, 6, 12).astype(np.float32)
    with torch.no_grad():
        expected = layer(torch.tensor(x))[0].numpy()
        projected = [getattr(layer, name)(torch.tensor(x)).numpy() for name in ("linear_q", "linear_k", "linear_v")]
    q, k, v = (make(np.moveaxis(y.reshape(2, 6, 3, 4), 2, 1)) for y in projected)
    table = make(layer.distance_embedding.weight.detach().numpy())
    output = flash_attention(q, k, v, bias=relative_position_scores(q, table, 6) / 2.0)
    np.testing.assert_allclose(np.moveaxis(to_numpy(output), 1, 2).reshape(2, 6, 12), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (2, 3, 4, 6), (5, 3), (1, 1), (0, 3), (3, 0)], ids=str)
def test_shift_moves_scores_to_their_keys(library, make, shape):
    scores = normal(*shape)
    Sq, Sk = shape[-2:]
    expected = np.zeros(shape)
    for i in range(Sq):
        for j in range(min(i + Sk - Sq + 1, Sk)):
            expected[..., i, j] = scores[..., i, j + Sq - 1 - i]
    assert_close(relative_shift(make(scores)), expected, library)


def test_shift_of_distances_is_shaw_without_clipping(library, make):
    query, embeddings = normal(2, 3, 4, 8), normal(7, 8)  # distances 6 to 0, as the columns of the scores
    shifted = relative_shift(make(query @ embeddings.T))
    table = make(np.concatenate([embeddings, np.zeros((6, 8))]))
    expected = relative_position_scores(make(query), table, 7, query_offset=3)
    assert_close(shifted, to_numpy(expected), library)


@pytest.mark.with_nan
def test_what_lies_after_the_query_never_shows(library, make):
    scores = normal(3, 3)
    scores[2, 0] = np.nan  # the last query and the first key: in memory just behind the row before
    shifted = to_numpy(relative_shift(make(scores)))
    assert np.isnan(shifted).sum() == 1
    assert np.isnan(shifted[2, 0])


@pytest.mark.backends("torch", "jax")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives(library, make):
    offset = make(np.asarray([2, 0]))
    check(library, lambda q, e: relative_position_scores(q, e, 4), normal(2, 3, 2), normal(5, 2))
    check(library, lambda q, e: relative_position_scores(q, e, 4, query_offset=offset), normal(2, 3, 2), normal(5, 2))
    check(library, relative_shift, normal(2, 3, 4))


CALLS = {
    "one offset": lambda q, e, _: relative_position_scores(q, e, 7, query_offset=2),
    "offsets": lambda q, e, offset: relative_position_scores(q, e, 7, query_offset=offset),
    "shift": lambda q, e, _: relative_shift(q),
}


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("function", CALLS.values(), ids=CALLS)
def test_compiled_and_mapped(library, make, function):
    arrays = [make(normal(2, 3, 5, 4)), make(normal(7, 4)), make(np.asarray([3, 1]))]
    expected = to_numpy(function(*arrays))
    compiled, mapped = compiled_and_mapped(library, function)
    assert_close(compiled(*arrays), expected, library)
    xp = library.namespace()
    stacked = [xp.stack([a, -a]) for a in arrays]
    expected = np.stack([to_numpy(function(*(a[i, ...] for a in stacked))) for i in range(2)])
    assert_close(mapped(*stacked), expected, library)


WRONG = {
    "list": Wrong(lambda a: relative_position_scores([[1.0]], a(3, 1), 2), TypeError, ("query", "list")),
    "integers": Wrong(lambda a: relative_position_scores(a(5, 4), a(7, 4, dtype="int32"), 5), TypeError, ("embeddings", "int32")),
    "two dtypes": Wrong(lambda a: relative_position_scores(a(5, 4), a.other(7, 4), 5), TypeError, ("embeddings", "one dtype")),
    "two libraries": Wrong(lambda a: relative_position_scores(a(5, 4), a.foreign(7, 4), 5), TypeError, ("one array library",)),
    "one axis": Wrong(lambda a: relative_position_scores(a(4), a(7, 4), 5), ValueError, ("query", "2 axes", "(4,)")),
    "embeddings of heads": Wrong(
        lambda a: relative_position_scores(a(5, 4), a(2, 7, 4), 5), ValueError, ("embeddings", "(2, 7, 4)")
    ),
    "width": Wrong(lambda a: relative_position_scores(a(5, 4), a(7, 3), 5), ValueError, ("width 3", "width 4", "(7, 3)")),
    "even rows": Wrong(lambda a: relative_position_scores(a(5, 4), a(6, 4), 5), ValueError, ("6 rows", "max_distance")),
    "fractional length": Wrong(lambda a: relative_position_scores(a(5, 4), a(7, 4), 5.0), TypeError, ("key_len", "float")),
    "negative length": Wrong(lambda a: relative_position_scores(a(5, 4), a(7, 4), -1), ValueError, ("key_len", "-1")),
    "no offset": Wrong(
        lambda a: relative_position_scores(a(5, 4), a(7, 4), 5, query_offset=None), TypeError, ("query_offset", "None")
    ),
    "fractional offset": Wrong(
        lambda a: relative_position_scores(a(5, 4), a(7, 4), 5, query_offset=1.5), TypeError, ("query_offset", "float")
    ),
    "offsets of another batch": Wrong(
        lambda a: relative_position_scores(a(2, 5, 4), a(7, 4), 5, query_offset=a(3, dtype="int32")), ValueError,
        ("query_offset", "(2,)", "(3,)"),
    ),
    "shift of a list": Wrong(lambda a: relative_shift([[1.0]]), TypeError, ("scores", "list")),
    "shift of integers": Wrong(lambda a: relative_shift(a(3, 3, dtype="int32")), TypeError, ("scores", "int32")),
    "shift of one axis": Wrong(lambda a: relative_shift(a(3)), ValueError, ("scores", "(..., Sq, Sk)", "(3,)")),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong):
    check_wrong(wrong, library)
