"""How large a tile is: chosen here from the problem and the library, and nowhere else.

The figures were measured with ``python -m benchmarks tiles``.
"""

import math
import sys
from typing import NamedTuple

from attention_xp._backend.libraries import cuda_device, library_name
from attention_xp._backend.modes import is_compiling
from attention_xp._backend.sizes import is_open, smaller
from attention_xp._engine.plan.patterns import FEWEST_ROWS, blocks, grain, narrowest
from attention_xp._engine.problem.problem import Problem

__all__ = [
    "CROWDED",
    "FOLD",
    "SMALL_PRODUCT",
    "STRIP",
    "TileShape",
    "backward_tile_shape",
    "backward_tile_sizes",
    "compiled_backward_shape",
    "compiled_shape",
    "stack",
    "strip_size",
    "tile_shape",
    "tile_sizes",
]

FOLD = 64  # rows up to which the query heads of a group share one product: NumPy and JAX
STRIP = 128  # keys of a strip and rows of a chunk, of which rules are asked: NumPy
_SIZES = {"numpy": (704, 512), "jax": (512, 512), "torch": (128, 512), "cupy": (512, 1024), "strict": (64, 64)}
_WHOLE = {"numpy": (704, 1024), "jax": (1024, 1024)}  # without rules: fewer and larger operations
_BACKWARD = {"numpy": (704, 512), "jax": (512, 256)}
_TALLEST_BACKWARD = 1024, 4096  # rows of all heads of a job, and of those where rules cut tiles into strips: NumPy
_WINDOW_TILE = 128, 128  # under a narrow window, where a tile has one stretch of keys: JAX
_WINDOW_TILE_OF_HEADS = 64, 64  # likewise, where heads share a tile
_FEW_HEADS = 2  # too few to share such a tile
_LARGEST_OF_HEADS = 2**14  # scores of a tile of several heads under rules: JAX, where there is no CUDA device
_SMALLEST_BLOCK = 32  # rows or keys of a block that is visited by itself
_NARROW = 1024  # keys of a window, up to which tiles of fewer rows save more than they cost
SMALL_PRODUCT = 10**6  # multiplications up to which BLAS does not copy the factors of a product first: NumPy
_STEP = 16  # rows of a step of a band: NumPy
_SCORES_OF_BAND = 2**19  # about
_MOST_KEYS = 8192
_TALLEST = 1024  # rows of all heads of a tile: NumPy
_STACKED = 256  # rows of a head under rules: with fewer rows, tiles leave out more of what is excluded
_SPARSE_BACKWARD = 4, 128, 1024  # heads, rows and keys of a tile where rules leave out much: NumPy
_LARGEST = 3 * 2**18  # scores of a tile
_LARGEST_ON_CUDA = 2**24  # scores of a tile of several heads: JAX; a guess, not measured on a GPU
_LEAST_COMPILED = 512  # rows of a block, and keys of a strip, where torch compiles
_BLOCKS_COMPILED = 8, 16  # blocks of rows there, at most; and where rules leave out much
# Of a tile and head, at most: for each number of query and key, or, if that is more, in all.
_SCORES_COMPILED = 4, 2**19
CROWDED = 512  # lines whose starts are a multiple of so many numbers apart compete for the same cache sets
_PAIRS_COMPILED = 2**23  # of a job of compiled loops, unless it has fewer rows than `_TALLEST`, which share packed keys
_TALLEST_SPARSE = 4096  # rows of all heads of such a job, where rules leave out much of its pairs
_PAIRS_OF_RULE = 2**19  # likewise, where a rule gives an array of what is added to their scores
_ROWS_COMPILED_BACKWARD = 512, 2048  # of all heads of a block, at least and at most; their gradients lie in memory
_PARTS_COMPILED_BACKWARD = 4  # of a head, at least, for several threads
_JOBS_COMPILED = 3  # jobs of compiled loops for each thread, at least
_JOBS, _JOBS_BACKWARD = 3, 2  # for each thread, at least; backward the last ones are cut further


class TileShape(NamedTuple):
    """The size of a tile of NumPy's walker."""

    heads: int
    rows: int  # of each head
    columns: int
    folded: bool  # whether the heads, which share a key/value head, have their rows joined in one product
    part: int = 0  # rows that are planned together, and to which `columns` applies; 0: all
    step: int = 0  # rows of a step of a band; 0: no bands
    width: int = 0  # columns of a tile of all rows, where these are several parts

    @property
    def scores(self) -> int:
        """Scores of a tile, at most."""
        return self.heads * max((self.part or self.rows) * self.columns, self.rows * self.width)


def tile_shape(problem: Problem, threads: int) -> TileShape:
    """Return the shape of a tile for NumPy: heads with few rows are stacked, so that tiles are about equally large."""
    rows, columns = tile_sizes(problem)
    Sq = problem.query.shape[-2]
    if problem.group > 1 and Sq <= FOLD:
        return TileShape(problem.group, rows, columns, folded=True)
    if problem.tile is not None:
        return TileShape(1, rows, columns, folded=False)
    height = min(_TALLEST, math.prod(problem.lead) * Sq // (_JOBS * threads))  # rows of all heads of a job
    heads, is_narrow = 1, narrowest(problem.rules) <= _NARROW
    if _is_uniform_along_heads(problem):
        least = min(rows, FEWEST_ROWS if is_narrow else _STACKED) if problem.rules else _uncrowded(rows, Sq)
        heads = _stacked(problem, height // least)
    rows = min(rows, max((_STACKED if is_narrow else height) // heads, FEWEST_ROWS))
    rows = _uncrowded(_equal_parts(Sq, rows), Sq)
    if not is_narrow:
        return TileShape(heads, rows, min(columns, max(_LARGEST // (heads * rows), STRIP)), folded=False)
    columns = _equal_parts(problem.key.shape[-2], _MOST_KEYS)  # all keys that such rows visit may be one tile
    columns = min(columns, max(_LARGEST // (heads * rows), STRIP))
    if rows % _STEP or not _has_bands(problem):
        return TileShape(heads, rows, columns, folded=False)
    parts = _parts(problem, heads * rows, threads)
    width = max(_LARGEST // (heads * rows * parts), STRIP)
    return TileShape(heads, rows * parts, columns, folded=False, part=rows, step=_STEP, width=width)


def compiled_shape(problem: Problem, threads: int) -> TileShape:
    """Return the shape of the blocks of rows that compiled loops take at once, under all keys: NumPy."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    most = max(_PAIRS_COMPILED // max(Sk, 1), _TALLEST_SPARSE if grain(problem.rules) < sys.maxsize else _TALLEST)
    if problem.evaluates_pairs:
        most = _PAIRS_OF_RULE // Sk
    height = max(min(math.prod(problem.lead) * Sq // (_JOBS_COMPILED * threads), most), FEWEST_ROWS)
    heads = _stacked(problem, height // Sq) if _is_uniform_along_heads(problem) else 1
    rows = height // heads if problem.tile is None else problem.tile[0]
    return TileShape(heads, _equal_parts(Sq, rows), Sk, folded=False)


def compiled_backward_shape(problem: Problem, threads: int) -> TileShape:
    """Return the same for the backward pass, in which the query heads of a group are in the same job."""
    shape = compiled_shape(problem, threads)
    is_alone = problem.tile is not None or not _is_uniform_along_heads(problem)
    heads = 1 if is_alone else max(shape.heads, problem.group)
    least, most = _ROWS_COMPILED_BACKWARD
    if threads > 1:  # the last heads are handed out in parts
        most = min(most, problem.query.shape[-2] // _PARTS_COMPILED_BACKWARD)
    rows = _equal_parts(problem.query.shape[-2], max(most // heads, least))
    return TileShape(heads, rows if problem.tile is None else shape.rows, shape.columns, folded=False)


def _has_bands(problem: Problem) -> bool:
    """Whether bands are faster: the product of a step is then so small that BLAS does not copy its factors."""
    widest = max(problem.query.shape[-1], problem.value.shape[-1])
    return problem.may_gather and bool(_STEP * _width_of_step(problem) * widest <= SMALL_PRODUCT)


def _parts(problem: Problem, height: int, threads: int) -> int:
    """Return the number of parts of a block, of `height` rows of all heads each: long bands are faster."""
    width, Sq = _width_of_step(problem), int(problem.query.shape[-2])
    of_a_job = math.prod(problem.lead) * Sq / (_JOBS * threads)
    parts = math.ceil(min(max(_TALLEST, _SCORES_OF_BAND // width), of_a_job) / height)
    return max(min(parts, _LARGEST // (width * height)), 1)


def _width_of_step(problem: Problem) -> int:
    """Return the number of keys that the rows of a step attend."""
    return narrowest(problem.rules) + _STEP - 1


def _is_uniform_along_heads(problem: Problem) -> bool:
    """Whether all heads, or batch items where there are no heads, have the same mask."""
    if problem.heads is None:
        return problem.is_masked_alike
    return all(rule.lead[-1:] in ((), (1,)) for rule in problem.rules)


def tile_sizes(problem: Problem) -> tuple[int, int]:
    """Return query rows and key columns of a tile: equal parts of the lengths, up to a size that is fast."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    if problem.tile is not None:
        return _of_lengths(problem, *problem.tile)
    if is_compiling(problem.xp):
        return _compiled_sizes(problem)
    library = library_name(problem.xp)
    rows, columns = (_SIZES if problem.rules else _SIZES | _WHOLE).get(library, (128, 512))
    if library == "jax":
        return _squares(problem, (rows, columns))
    finest = min(rows, max(Sq, 1), grain(problem.rules))
    if finest < rows:  # fewer rows and more keys: tiles leave out more, and have as many scores
        rows, columns = finest, min(columns * (rows // finest), _MOST_KEYS)
    return _equal_parts(Sq, rows), _equal_parts(Sk, columns)


def _compiled_sizes(problem: Problem) -> tuple[int, int]:
    """Return rows and keys of a tile where torch compiles: each tile is some 80 operations of the graph, so there are few.

    A graph of many takes minutes to compile, and small tiles gain little where the compiler fuses what is done on one. The
    sizes do not depend on the number of heads, so that an exported program may leave the batch open.
    """
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    rows = _compiled_block(problem, Sq)
    of_a_number, least = _SCORES_COMPILED
    most = max(of_a_number * (Sq + Sk) * problem.query.shape[-1], least)
    return rows, Sk if rows * Sk <= most else _equal_parts(Sk, max(most // rows, _compiled_block(problem, Sk)))


def _compiled_block(problem: Problem, length: int) -> int:
    """Return the rows of a block, or the keys of a strip, where torch compiles."""
    most = _BLOCKS_COMPILED[grain(problem.rules) < sys.maxsize]
    return _equal_parts(length, max(_LEAST_COMPILED, 16 * -(-length // (16 * most))))


def _squares(problem: Problem, most: tuple[int, int]) -> tuple[int, int]:
    """Return rows and keys of a tile that is visited as a whole: the blocks of a mask, or a part of a window."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    rows, columns = most
    if narrowest(problem.rules) <= (_NARROW if is_open(Sk) else min(_NARROW, Sk // 2)):
        is_shared = _sharing(problem, _WINDOW_TILE_OF_HEADS) > _FEW_HEADS and not blocks(problem.rules)
        rows, columns = _WINDOW_TILE_OF_HEADS if is_shared else _WINDOW_TILE
    for block in blocks(problem.rules):
        rows, columns = (_about(size, n) for size, n in zip(block, (rows, columns), strict=True))
    if (rows, columns) == most:
        return _equal_parts(Sq, rows), _equal_parts(Sk, columns)
    return _of_lengths(problem, rows, columns)


def _of_lengths(problem: Problem, rows: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of a tile, but no more than there are."""
    return _no_more(rows, problem.query.shape[-2]), _no_more(columns, problem.key.shape[-2])


def _no_more(size: int, length: int) -> int:
    if is_open(size):
        return size  # it has been through here
    return smaller(length if is_open(length) else max(length, 1), size)  # type: ignore[no-any-return]


def stack(problem: Problem) -> tuple[int, ...]:
    """Return the number of batch items and heads that share a tile of JAX's walker, along each leading axis.

    With few rows, the query heads of a group share one product. One head alone does not fill a CUDA device: there, all
    batch items and heads with the same mask share a tile, up to a size that memory allows. Elsewhere a few heads share the
    small tiles of sparse masks, of which an operation would take less time than it takes to begin it.
    """
    if problem.stack is not None:
        return problem.stack
    lead, of_batch = problem.lead, len(problem.batch)
    few = problem.group if not is_open(problem.query.shape[-2]) and problem.query.shape[-2] <= FOLD else 1
    sizes = [1] * of_batch + [few] * (len(lead) - of_batch)
    if is_open(*lead, *tile_sizes(problem)):
        return tuple(sizes)
    if cuda_device(problem.query) is None:
        if few == 1 and problem.tile is None and problem.heads is not None:
            sizes[-1] = _sharing(problem, tile_sizes(problem))
        return tuple(sizes)
    room = _LARGEST_ON_CUDA // math.prod(tile_sizes(problem))
    if problem.heads is not None and _is_uniform_along_heads(problem):
        sizes[-1] = max(few, _stacked(problem, room))
    for axis in reversed(range(of_batch)):
        inner = tuple(sizes[axis + 1 :])
        if not problem.is_masked_alike or inner != lead[axis + 1 :]:
            break
        sizes[axis] = _largest_part(lead[axis], room // math.prod(inner))
    return tuple(sizes)


def _sharing(problem: Problem, tile: tuple[int, int]) -> int:
    """Return the number of heads that share a small tile, without a CUDA device; 1 where nothing is excluded."""
    if problem.heads is None or is_open(*problem.lead) or cuda_device(problem.query) is not None:
        return 1
    if len(problem.rules) == 0 or not _is_uniform_along_heads(problem):
        return 1
    return _stacked(problem, _LARGEST_OF_HEADS // math.prod(tile))


def _largest_part(length: int, most: int) -> int:
    """Return the largest number up to `most` that divides a length."""
    return max(n for n in range(1, max(min(most, length), 1) + 1) if length % n == 0)


def strip_size(problem: Problem, columns: int) -> int:
    """Return the number of keys of a strip; a tile may consist of several."""
    if problem.tile is not None or len(problem.rules) == 0:
        return columns
    if is_compiling(problem.xp):
        return min(columns, _compiled_block(problem, problem.key.shape[-2]))
    return min([columns, STRIP, *(_about(size, STRIP) for _, size in blocks(problem.rules))])


def _about(size: int, most: int) -> int:
    """Return a multiple or a fraction of a block's size: at most `most`, and not too small to be fast."""
    if size < _SMALLEST_BLOCK:
        return size * -(-_SMALLEST_BLOCK // size)
    return -(-size // -(-size // most))


def _equal_parts(length: int, size: int) -> int:
    """Return the size of equal parts of at most `size`, a multiple of 16."""
    if is_open(length):
        return smaller(length, size)  # type: ignore[no-any-return]
    if length <= size:
        return max(length, 1)
    part = -(-length // -(-length // size))  # integers alone: torch traces them, too
    return min(size, 16 * -(-part // 16))


def _uncrowded(rows: int, Sq: int) -> int:
    """Return a few rows more where lines of that length would compete for a cache, unless these are all rows."""
    return rows + 16 if rows % CROWDED == 0 and rows < Sq else rows


def backward_tile_sizes(problem: Problem) -> tuple[int, int]:
    """Return query rows and key columns of a tile backward, where scores and their gradients are in memory together."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    library = library_name(problem.xp)
    if problem.tile is not None or library not in _BACKWARD:
        return tile_sizes(problem)
    rows, columns = _BACKWARD[library]
    if library == "jax":
        return _squares(problem, (rows, columns))
    rows = columns if problem.rules else rows  # a diagonal then runs through the corners of tiles
    return _uncrowded(_equal_parts(Sq, rows), Sq), _equal_parts(Sk, columns)


def backward_tile_shape(problem: Problem, threads: int, *, alone: bool) -> TileShape:
    """Return the shape of a tile backward for NumPy: heads are stacked, unless each has to be `alone`."""
    rows, columns = backward_tile_sizes(problem)
    if problem.tile is not None or alone or not _is_uniform_along_heads(problem):
        return TileShape(1, rows, columns, folded=False)
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    height = math.prod(problem.lead) * Sq // (_JOBS_BACKWARD * threads)
    finest = grain(problem.rules)
    if finest < sys.maxsize:
        most, least, columns = _SPARSE_BACKWARD
        is_narrow = narrowest(problem.rules) <= _NARROW
        rows = _equal_parts(Sq, least if is_narrow else min(max(finest, least), _STACKED))
        return TileShape(_stacked(problem, min(most, height // rows)), rows, min(columns, Sk), folded=False)
    heads = _stacked(problem, min(height, _TALLEST_BACKWARD[len(problem.rules) > 0]) // max(Sq, 1))
    return TileShape(heads, rows, min(columns, max(_LARGEST // (heads * rows), STRIP)), folded=False)


def _stacked(problem: Problem, most: int) -> int:
    """Return the largest number of query heads, up to `most`, that are whole groups or an equal part of one."""
    group, axis = problem.group, problem.lead[-1] if problem.lead else 1
    some = range(1, max(min(most, axis), 1) + 1)
    return max(n for n in some if group % n == 0 or (n % group == 0 and axis % n == 0))
