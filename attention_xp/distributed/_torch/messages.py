"""Messages between the ranks of a process group, which end in an error that names rank, step and peer, or arrive.

All strategies send point to point: a collective that times out says of no rank that it is the one that is missing, and gloo
closes all connections after it.
"""

import threading
import weakref
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from attention_xp._typing import Array

__all__ = ["Channel", "Pending", "Ranks"]

_calls: Any = weakref.WeakKeyDictionary()  # how many calls of this module each group has seen
_EVER = timedelta(days=365)


class Ranks:
    """The ranks of a group, as one of them sees them during a call."""

    def __init__(self, group: Any, function: str, timeout: float | None) -> None:
        self.group, self.function, self.timeout = _process_group(group), function, timeout
        self.rank: int = dist.get_rank(self.group)
        self.n: int = dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError(f"group must hold this process: {function} was called by one that is not in it")

    @property
    def others(self) -> list[int]:
        """All ranks but this one, the next one first."""
        return [(self.rank + step) % self.n for step in range(1, self.n)]

    def channel(self, way: str = "") -> "Channel":
        """Return the channel for a way through a call, which all ranks take in the same order."""
        _calls[self.group] = number = _calls.get(self.group, 0) + 1
        return Channel(self, number, way)


class Channel:
    """The messages of one way through a call.

    Each step has a tag of its own: what was left behind by a call that ended in an error is never taken for something else.
    """

    def __init__(self, ranks: Ranks, number: int, way: str) -> None:
        self.ranks, self._way = ranks, way
        self._tag = number % 2**15 << 16

    def start(self, outgoing: dict[int, Array], incoming: dict[int, Array], step: str) -> "Pending":
        """Send to some ranks, and receive from some, all at once and without waiting."""
        self._tag += 1
        pending = Pending(self.ranks, f"{step}{self._way}")
        group = self.ranks.group
        ops = []
        for peer in self.ranks.others:
            at = dist.get_global_rank(group, peer)
            for kind, tensors in ((dist.isend, outgoing), (dist.irecv, incoming)):
                if peer in tensors and tensors[peer].numel() > 0:
                    ops.append(dist.P2POp(kind, tensors[peer], at, group, self._tag))
                    pending.peers.append(peer)
        pending.tensors = [op.tensor for op in ops]
        try:
            pending.works = dist.batch_isend_irecv(ops) if ops else []
        except RuntimeError as error:
            pending.fail(error)
        return pending

    def exchanged(self, parts: list[Array], step: str) -> list[Array]:
        """Give each rank its part, and return what all ranks gave this one; all parts have one shape."""
        ranks = self.ranks
        parts = [part.contiguous() for part in parts]
        arrived = {peer: torch.empty_like(parts[peer]) for peer in ranks.others}
        self.start({peer: parts[peer] for peer in ranks.others}, arrived, step).wait()
        return [parts[peer] if peer == ranks.rank else arrived[peer] for peer in range(ranks.n)]


class Pending:
    """Messages that are on their way."""

    def __init__(self, ranks: Ranks, step: str) -> None:
        self._ranks, self._step = ranks, step
        self.works: list[Any] = []
        self.peers: list[int] = []
        self.tensors: list[Array] = []
        self._at = 0
        self._error: RuntimeError | None = None

    def wait(self) -> None:
        """Wait until all have arrived."""
        timeout = self._ranks.timeout
        if timeout is None or any(tensor.device.type != "cpu" for tensor in self.tensors):
            self._wait(None if timeout is None else timedelta(seconds=timeout))
        elif self.works:
            # Where gloo itself runs out of time it closes all connections; a thread that waits longer leaves them open.
            thread = threading.Thread(target=self._wait, args=(_EVER,), daemon=True)
            thread.start()
            thread.join(timeout)
            if thread.is_alive():
                raise TimeoutError(f"{self._place}: rank {self._peer} did not answer within {timeout:g} seconds")
        if self._error is not None:
            self.fail(self._error)

    def _wait(self, timeout: timedelta | None) -> None:
        try:
            for at, work in enumerate(self.works):
                self._at = at
                work.wait() if timeout is None else work.wait(timeout)
        except RuntimeError as error:  # of gloo and NCCL alike
            self._error = error

    @property
    def _place(self) -> str:
        ranks = self._ranks
        return f"{ranks.function} on rank {ranks.rank} of {ranks.n}, {self._step}"

    @property
    def _peer(self) -> str:
        # NCCL makes one of all messages.
        peers = self.peers if len(self.works) < len(self.peers) else [self.peers[self._at]]
        return " or ".join(map(str, dict.fromkeys(peers)))

    def fail(self, error: RuntimeError) -> NoReturn:
        """Raise the error of a message that will not arrive."""
        if "timed out" in str(error).lower():
            raise TimeoutError(f"{self._place}: rank {self._peer} did not answer in time: {error}") from error
        raise ConnectionError(f"{self._place}: rank {self._peer} is gone: {error}") from error


def _process_group(group: Any) -> Any:
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
