"""Messages between the ranks of a process group, which end in an error that names rank, step and peer, or arrive.

All strategies send point to point: a collective that times out says of no rank that it is the one that is missing, and gloo
closes all connections after it.
"""

import threading
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from attention_xp._typing import Array

__all__ = ["Channel", "Pending", "Ranks", "axes_of", "process_group"]

_calls: Any = weakref.WeakKeyDictionary()  # how many calls each group has seen
_EVER = timedelta(days=365)
_NEVER = 2**31 - 1  # a tag that nobody receives


class Ranks:
    """The ranks of a group, as one of them sees them during a call.

    The call has a number, which is the same on all ranks: where they come to differ in it, because one has made a call that
    another has not, they do not hear of each other, and run out of time.
    """

    def __init__(self, group: Any, function: str, timeout: float | None) -> None:
        self.group, self.function, self.timeout = process_group(group), function, timeout
        self.rank: int = dist.get_rank(self.group)
        self.n: int = dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError(f"group must hold this process: {function} was called by one that is not in it")
        _calls[self.group] = self._number = _calls.get(self.group, 0) + 1
        self._channels = 0
        # What they are called among all ranks of a call, and of how many.
        self.names, self.of = list(range(self.n)), self.n

    @classmethod
    def along(cls, groups: tuple[Any, ...], function: str, timeout: float | None) -> "tuple[Ranks, ...]":
        """Return the ranks along each axis of those of a call: along one, or along two, counted along the last one first."""
        axes = tuple(cls(group, function, timeout) for group in groups)
        if len(axes) == 2:
            outer, inner = axes
            inner.names = [outer.rank * inner.n + rank for rank in range(inner.n)]
            outer.names = [rank * inner.n + inner.rank for rank in range(outer.n)]
            inner.of = outer.of = outer.n * inner.n
        return axes

    @property
    def name(self) -> int:
        """What this rank is called among all ranks of the call."""
        return self.names[self.rank]

    @property
    def place(self) -> str:
        """Which rank makes which call, for messages."""
        return f"{self.function} on rank {self.name} of {self.of}"

    @property
    def others(self) -> list[int]:
        """All ranks but this one, the next one first."""
        return [(self.rank + step) % self.n for step in range(1, self.n)]

    def channel(self, purpose: str) -> "Channel":
        """Return a further channel of the call, which all ranks ask for in the same order."""
        self._channels += 1
        return Channel(self, purpose, (self._number % 2**20 << 8 | self._channels) << 3)


class Channel:
    """Messages for one purpose.

    A message has a tag of its own, made of the number of the call, the channel, the way, the turn and its place among those of
    the turn, one or two: what was left behind by a call that ended in an error is never taken for something else.
    """

    def __init__(self, ranks: Ranks, purpose: str, tag: int) -> None:
        self.ranks, self._purpose, self._tag = ranks, purpose, tag

    def back(self) -> "Channel":
        """Return the channel for the gradients."""
        return Channel(self.ranks, ", ".join(filter(None, [self._purpose, "way back"])), self._tag | 4)

    def start(
        self,
        outgoing: dict[int, tuple[Array, ...]],
        incoming: dict[int, tuple[Array, ...]],
        step: str = "",
        turn: int = 0,
    ) -> "Pending":
        """Send to some ranks, and receive from some, all at once and without waiting."""
        pending = Pending(self.ranks, ", ".join(filter(None, [self._purpose, step])))
        group, ops = self.ranks.group, []
        for peer in self.ranks.others:
            at = dist.get_global_rank(group, peer)
            for kind, tensors in ((dist.isend, outgoing), (dist.irecv, incoming)):
                for i, tensor in enumerate(tensors.get(peer, ())):
                    if tensor.numel() > 0:
                        ops.append((peer, dist.P2POp(kind, tensor, at, group, self._tag | turn << 1 | i)))
        pending.post(ops)
        return pending

    def exchanged(self, parts: Sequence[Array], turn: int = 0) -> Array:
        """Give each rank its part, and return what all ranks gave this one, (n, ...); all parts have one shape."""
        ranks = self.ranks
        arrived = parts[0].new_empty((ranks.n, *parts[0].shape))
        arrived[ranks.rank] = parts[ranks.rank]
        outgoing = {peer: (parts[peer].contiguous(),) for peer in ranks.others}
        self.start(outgoing, {peer: (arrived[peer],) for peer in ranks.others}, turn=turn).wait()
        return arrived


class Pending:
    """Messages that are on their way."""

    def __init__(self, ranks: Ranks, step: str) -> None:
        self._ranks, self._step = ranks, step
        self._works: list[Any] = []
        self._peers: list[int] = []
        self._tensors: list[Array] = []
        self._at = 0
        self._error: RuntimeError | None = None

    def post(self, ops: list[tuple[int, Any]]) -> None:
        """Start operations, each with the rank at its other end."""
        self._peers, self._tensors = [peer for peer, _ in ops], [op.tensor for _, op in ops]
        # NCCL makes one operation of all of a batch; gloo starts them one by one, and says of none that it is the one that failed.
        size = 1 if self._is_on_cpu else len(ops)
        try:
            for at in range(0, len(ops), size or 1):
                self._at = at
                self._works += dist.batch_isend_irecv([op for _, op in ops[at : at + size]])
        except RuntimeError as error:
            self._fail(error)

    @property
    def _is_on_cpu(self) -> bool:
        return all(tensor.device.type == "cpu" for tensor in self._tensors)

    def wait(self) -> None:
        """Wait until all have arrived."""
        timeout = self._ranks.timeout
        if timeout is None or not self._is_on_cpu:
            self._wait(None if timeout is None else timedelta(seconds=timeout))
        elif self._works:
            # Where gloo itself runs out of time it closes all connections; a thread that waits longer leaves them open.
            thread = threading.Thread(target=self._wait, args=(_EVER,), daemon=True)
            thread.start()
            thread.join(timeout)
            if thread.is_alive():
                raise TimeoutError(
                    f"{self._place}: rank {self._peer} did not answer within {timeout:g} seconds{self._gone()}"
                )
        if self._error is not None:
            self._fail(self._error)

    def _wait(self, timeout: timedelta | None) -> None:
        try:
            for at, work in enumerate(self._works):
                self._at = at
                work.wait() if timeout is None else work.wait(timeout)
        except RuntimeError as error:  # of gloo and NCCL alike
            self._error = error

    def _gone(self) -> str:
        """Say which ranks are gone, perhaps the reason why another one has given up: gloo refuses to send to them."""
        group, one, gone = self._ranks.group, torch.zeros(1), []
        for peer in self._ranks.others:
            try:
                dist.batch_isend_irecv([dist.P2POp(dist.isend, one, dist.get_global_rank(group, peer), group, _NEVER)])
            except RuntimeError:
                gone.append(self._ranks.names[peer])
        return f"; gone is rank {', '.join(map(str, gone))}" if gone else ""

    @property
    def _place(self) -> str:
        ranks = self._ranks
        return f"{ranks.place}, {self._step}"

    @property
    def _peer(self) -> str:
        peers = [self._peers[self._at]] if self._is_on_cpu else self._peers
        return " or ".join(str(self._ranks.names[peer]) for peer in dict.fromkeys(peers))

    def _fail(self, error: RuntimeError) -> NoReturn:
        """Raise the error of a message that will not arrive."""
        if "timed out" in str(error).lower():
            raise TimeoutError(f"{self._place}: rank {self._peer} did not answer in time: {error}") from error
        raise ConnectionError(f"{self._place}: rank {self._peer} is gone: {error}") from error


def axes_of(group: Any) -> tuple[Any, ...]:
    """Return what stands for each axis of ranks that are arranged along two, the outer one first; a group alone as it is."""
    if isinstance(group, tuple):
        if len(group) != 2:
            raise ValueError(f"group must be one group or a pair (ring, heads), got a tuple of {len(group)}")
        return group
    if isinstance(group, dist.device_mesh.DeviceMesh) and group.ndim == 2:
        return group.get_group(0), group.get_group(1)
    return (group,)


def process_group(group: Any) -> Any:
    """Return a process group, or that of a device mesh with one axis."""
    if isinstance(group, dist.ProcessGroup):
        return group
    if not isinstance(group, dist.device_mesh.DeviceMesh):
        raise TypeError(f"group must be a ProcessGroup or a DeviceMesh of torch, got {type(group).__name__}")
    if group.ndim != 1:
        raise ValueError(
            f"group must be a device mesh with one axis, got the axes {group.mesh_dim_names or group.ndim}: "
            "expected one of them, mesh[name]"
        )
    return group.get_group()
