"""Tiles are chosen from what the rules leave out, however these were written down."""

import numpy as np
import pytest

from attention_xp._engine.plan import row_tiles, tile_sizes as tile_sizes_module
from attention_xp._engine.plan.plan import bounds
from attention_xp._engine.plan.tile_sizes import (
    backward_tile_sizes,
    compiled_backward_shape,
    compiled_shape,
    stack,
    tile_sizes,
)
from attention_xp._engine.problem.problem import Problem
from attention_xp.masks import BlockMask, CausalMask, WindowMask, longformer_mask


def problem(library, mask, length=4096, width=8, **options):
    """A call of which nothing but the lengths and the rules matters."""
    xp = library.namespace()
    query = xp.zeros((1, 8, length, width), dtype=xp.float32, device=library.device())
    return Problem.of(query, query, query, mask, 0.0, options)


def blocks(size):
    return BlockMask(np.eye(4096 // min(size) + 1, dtype=bool), size)


@pytest.mark.parametrize("sizes", [tile_sizes, backward_tile_sizes])
def test_a_mask_and_options_that_say_the_same_have_the_same_tiles(library, sizes):
    by_options = problem(library, None, is_causal=True, window=(300, 0))
    by_mask = problem(library, CausalMask() & WindowMask(300, 0))
    assert sizes(by_options) == sizes(by_mask)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("mask", "rows"),
    [(None, 2048), (CausalMask(), 2048), (blocks((64, 64)), 4096), (longformer_mask(256), 4096)],
    ids=["full", "causal", "blocks", "longformer"],
)
def test_blocks_of_compiled_loops_are_taller_where_much_is_left_out_and_threads_are_few(library, mask, rows):
    call = problem(library, mask)
    assert compiled_shape(call, 1)[:3] == (1, rows, 4096)
    assert compiled_shape(call, 8)[:3] == (1, 1024, 4096)  # three jobs for each thread, at least
    assert compiled_shape(problem(library, mask, length=2**17), 1).rows == (2**12 if rows > 2048 else 2**10)
    assert [compiled_backward_shape(call, threads).rows for threads in (1, 2)] == [2048, 1024]


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    ("block", "tile"),
    [((64, 64), (64, 64)), ((64, 128), (64, 128)), ((8, 8), (32, 32)), ((24, 40), (48, 40))],
)
def test_a_tile_on_jax_is_a_block_or_some(library, block, tile):
    for mask in (blocks(block), blocks(block) & CausalMask(), longformer_mask(64) | blocks(block)):
        assert tile_sizes(problem(library, mask)) == tile
        assert backward_tile_sizes(problem(library, mask)) == tile


@pytest.mark.backends("jax")
def test_large_blocks_are_cut_into_equal_tiles_on_jax(library):
    assert tile_sizes(problem(library, blocks((768, 1024)))) == (384, 512)
    assert tile_sizes(problem(library, blocks((256, 200)))) == (256, 200)


@pytest.mark.backends("jax")
def test_tiles_are_small_along_a_narrow_window_alone_on_jax(library):
    narrow = tile_sizes(problem(library, longformer_mask(128)))
    assert max(narrow) < min(tile_sizes(problem(library, WindowMask(3000, 0))))
    assert max(narrow) < min(tile_sizes(problem(library, CausalMask())))
    assert min(tile_sizes(problem(library, longformer_mask(128), length=256))) == 256  # nothing to leave out


@pytest.mark.backends("jax")
def test_heads_with_the_same_mask_share_small_tiles_on_jax(library):
    per_head = BlockMask(np.stack([np.eye(64, dtype=bool)] * 8), 64)
    for mask, heads in ((blocks((64, 64)), 4), (longformer_mask(128), 4), (CausalMask(), 1), (per_head, 1)):
        assert stack(problem(library, mask)) == (1, heads)
    assert stack(problem(library, None)) == (1, 1)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("options", [{"is_causal": True}, {"is_causal": True, "window": (255, 0)}], ids=str)
def test_few_tiles_of_bounded_memory_while_torch_compiles(library, options, monkeypatch):
    """Whatever the length: each is some 80 operations of the graph."""
    for module in (tile_sizes_module, row_tiles):
        monkeypatch.setattr(module, "is_compiling", lambda _: True)
    for length in (512, 1024, 2048, 5000, 16384):
        of = problem(library, None, length, 64, **options)
        rows, columns = tile_sizes(of)
        tiles = [tile for block in bounds(0, length, rows) for tile in row_tiles.tiles_of_rows(of, *block, columns)]
        assert len(tiles) <= 24
        assert rows * columns <= max(8 * length * 64, 2**19)
    assert tile_sizes(problem(library, None, **options, tile=(64, 128))) == (64, 128)
