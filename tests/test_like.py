"""New arrays beside an array that is shown: its library, device and dtype."""

import pytest
from array_api_compat import array_namespace, device as device_of

import attention_xp as ax
from attention_xp.linear import performer_features
from tests._assertions import dtype_name
from tests._inputs import normal

MAKERS = {
    "alibi_slopes": lambda **where: [ax.alibi_slopes(6, **where)],
    "create_causal_mask": lambda **where: [ax.create_causal_mask(3, **where)],
    "init_multi_head_params": lambda **where: ax.init_multi_head_params(4, 2, bias=True, rng=0, **where),
    "learned_positional_encoding": lambda **where: [ax.learned_positional_encoding(3, 4, rng=0, **where)],
    "performer_features": lambda **where: [performer_features(4, 3, rng=0, **where).projection],
    "positional_encoding": lambda **where: [ax.positional_encoding(3, 4, **where)],
    "rotary_cache": lambda **where: ax.rotary_cache(3, 4, **where),
}
WIDE = {"float16": "float32", "bfloat16": "float32"}  # tables of angles are never narrower


@pytest.fixture(params=MAKERS)
def maker(request):
    """The name of a function that makes arrays."""
    return request.param


def test_library_device_and_dtype_are_those_of_the_array(library, make, maker):
    for dtype in library.dtypes():
        like = make(normal(2), dtype)
        expected = WIDE.get(dtype, dtype) if maker == "rotary_cache" else dtype
        for made in MAKERS[maker](like=like):
            assert array_namespace(made) == library.namespace()
            assert device_of(made) == device_of(like)
            assert dtype_name(made.dtype) == expected


def test_a_given_dtype_wins(library, make, maker):
    dtype = next(d for d in library.dtypes() if d != "float32")
    for like in (make(normal(2)), library.array([5, 7])):
        assert {dtype_name(made.dtype) for made in MAKERS[maker](like=like, dtype=dtype)} == {dtype}


def test_the_library_is_said_once(library, make, xp, device, maker):
    for name, given in (("xp", xp), ("device", device)):
        with pytest.raises(ValueError, match=f"{name} is that of like where like is given: expected like, or xp and"):
            MAKERS[maker](like=make(normal(2)), **{name: given})


def test_like_is_a_floating_array(library, maker):
    with pytest.raises(TypeError, match="like must be an array, got list"):
        MAKERS[maker](like=[1.0])
    with pytest.raises(TypeError, match="like must be a floating array where no dtype is given, got int32"):
        MAKERS[maker](like=library.array([5, 7]))


@pytest.mark.backends("numpy", "torch", "jax")
def test_positions_of_a_rotary_cache_say_where_already(library, make):
    with pytest.raises(ValueError, match="leave them and like out"):
        ax.rotary_cache(library.array([0, 4]), 4, like=make(normal(2)))


@pytest.mark.backends("jax")
def test_an_array_that_is_traced_shows_as_much(make):
    jax = pytest.importorskip("jax")
    x = make(normal(3, 4), "float16")
    assert jax.jit(lambda x: x + ax.positional_encoding(3, 4, like=x))(x).dtype == x.dtype
