"""Graphs of Dask: a task for each block of the scores, and trees of tasks that bring blocks together."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import dask.array as da
from dask.array.utils import meta_from_array
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, List, Task, TaskRef

from attention_xp._typing import DType
from attention_xp.distributed._dask.grid import Aligned, Grid, Index
from attention_xp.distributed._dask.tasks import Block, Whole, cast, one_of, sums, zeros

__all__ = ["Layer", "of_results", "of_rule", "summed"]

Key = tuple[Any, ...]
Reduce = Callable[..., Any]


class Layer:
    """Tasks that belong together, and the arrays that they read."""

    def __init__(self, name: str, sources: Iterable[da.Array] = ()) -> None:
        self.name = name
        self.tasks: dict[Any, Any] = {}
        self._sources = list(sources)

    def add(self, key: Key, function: Callable[..., Any], *arguments: Any) -> TaskRef:
        """Add a task, and return what refers to it."""
        self.tasks[key] = Task(key, function, *arguments)
        return TaskRef(key)

    def add_blocks(
        self, grid: Grid, plan: Sequence[Sequence[int]], whole: Whole, function: Reduce, inputs: Sequence[Any]
    ) -> dict[Index, TaskRef]:
        """Add a task for each block of a plan, which says for each chunk of rows which chunks of keys they meet.

        Inputs are aligned arrays, of which a task gets its chunk, or what all tasks get.
        """
        shared = f"{self.name}-options"
        self.tasks[shared] = DataNode(shared, whole)
        starts, found = grid.starts, {}
        for lead, (i, columns) in product(grid.lead, enumerate(plan)):
            for j in columns:
                index = (*lead, i, j)
                block = Block(
                    tuple(first[n] for first, n in zip(starts, index, strict=True)),
                    tuple(sizes[n] for sizes, n in zip(grid.chunks, index, strict=True)),
                    j == columns[0],
                )
                given = [x.ref(index) if isinstance(x, Aligned) else x for x in inputs]
                found[index] = self.add((self.name, *index), function, TaskRef(shared), block, *given)
        return found

    def add_tree(
        self, name: str, index: Index, parts: Sequence[TaskRef], function: Reduce, split_every: int
    ) -> TaskRef:
        """Add tasks that join so many parts at a time, until there is one."""
        depth = 0
        while len(parts) > 1:
            groups = [parts[i : i + split_every] for i in range(0, len(parts), split_every)]
            parts = [
                group[0] if len(group) == 1 else self.add((name, *index, depth, i), function, List(*group))
                for i, group in enumerate(groups)
            ]
            depth += 1
        return parts[0]

    def graph(self, *behind: "Layer") -> HighLevelGraph:
        """Return the graph of this layer, and of one that reads it."""
        graph = HighLevelGraph.from_collections(self.name, self.tasks, dependencies=self._sources)
        layers, needs = dict(graph.layers), dict(graph.dependencies)
        for layer in behind:
            more = HighLevelGraph.from_collections(layer.name, layer.tasks, dependencies=layer._sources)
            layers |= more.layers
            needs |= {**more.dependencies, layer.name: {*more.dependencies[layer.name], self.name}}
        return HighLevelGraph(layers, needs)


def of_results(
    layer: Layer, name: str, refs: dict[Index, TaskRef], n: int, chunks: Any, like: da.Array, dtype: DType
) -> da.Array:
    """Return the array of the n-th results of tasks; the index of a task is that of its chunk."""
    own = Layer(name)
    for index, ref in refs.items():
        own.add((name, *index), one_of, ref, n, dtype)
    return da.Array(layer.graph(own), name, chunks, meta=meta_from_array(like, ndim=len(chunks), dtype=dtype))


def summed(layer: Layer, name: str, blocks: dict[Index, TaskRef], n: int, like: Aligned, split_every: int) -> da.Array:
    """Return what the n-th results of blocks sum up to, chunked as an array; zeros where it takes part in no block."""
    own, array = Layer(name, [like.array]), like.array
    groups: dict[Index, list[TaskRef]] = defaultdict(list)
    for index, ref in blocks.items():
        groups[like.at(index)].append(ref)
    for index in product(*map(range, array.numblocks)):
        key, refs = (name, *index), groups.get(index)
        if refs is None:
            own.add(key, zeros, TaskRef((array.name, *index)), array.dtype)
        else:
            own.add(key, cast, _total(own, index, refs, n, split_every), array.dtype)
    return da.Array(layer.graph(own), name, array.chunks, meta=meta_from_array(array))


def of_rule(
    layer: Layer, name: str, blocks: dict[Index, TaskRef], n: int, arrays: Sequence[Any], split_every: int
) -> tuple[da.Array, ...]:
    """Return what the n-th results of blocks, each a tuple, sum up to: one array for each of those of a rule."""
    own = Layer(name)
    whole = _total(own, (), list(blocks.values()), n, split_every)
    found = []
    for i, array in enumerate(arrays):
        picked = Layer(f"{name}-{i}")
        picked.tasks |= own.tasks
        picked.add((picked.name, *(0,) * array.ndim), one_of, whole, i, array.dtype)
        chunks = tuple((length,) for length in array.shape)
        found.append(da.Array(layer.graph(picked), picked.name, chunks, meta=meta_from_array(array)))
    return tuple(found)


def _total(layer: Layer, index: Index, refs: Sequence[TaskRef], n: int, split_every: int) -> TaskRef:
    """Add the tasks that sum up the n-th results of some tasks; these are let go of early."""
    name = f"{layer.name}-sum"
    groups = [refs[i : i + split_every] for i in range(0, len(refs), split_every)]
    firsts = [layer.add((name, *index, i), sums, List(*group), n) for i, group in enumerate(groups)]
    return layer.add_tree(f"{layer.name}-total", index, firsts, sums, split_every)
