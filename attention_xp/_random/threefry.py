"""The counter-based generator Threefry-2x32, in the arithmetic that every library shares.

It needs additions, rotations and exclusive-ors of 32-bit words alone. These are done in int32, the one 32-bit
integer type that every backend computes with (torch has no arithmetic on uint32, JAX no int64 by default); its
wrap-around is what the generator asks for. See Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011.
"""

from typing import Any

from attention_xp._typing import Array

__all__ = ["DRAW", "KEY", "Steps", "schedule_of", "threefry"]

DRAW = 13  # rounds: the fewest in which the authors know of no statistical flaw, and publish known answers for
KEY = 20  # rounds of what serves as a key: their default, for keys should not be alike where counters are

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


class Steps:
    """What a round is made of; functional, on int32."""

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y."""
        return x + y

    def mix(self, x: Array, y: Array, rotation: int) -> Array:
        """Return the exclusive-or of x and of y, whose bits are rotated to the left."""
        # The right shift of int32 repeats the sign, so the incoming bits are cut out.
        return x ^ ((y << rotation) | ((y >> (32 - rotation)) & ((1 << rotation) - 1)))

    def inject(self, x: Array, word: Any, number: int) -> Array:
        """Return x plus a word of the key and a small number."""
        return x + word + number


_FUNCTIONAL = Steps()


def schedule_of(key: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    """Return the words that are injected in turn: those of the key, and a third that follows from them."""
    return key[0], key[1], key[0] ^ key[1] ^ _PARITY


def threefry(
    key: tuple[Any, Any], counter: tuple[Array, Array], *, rounds: int = DRAW, steps: Steps = _FUNCTIONAL
) -> tuple[Array, Array]:
    """Encrypt two counter words, which may broadcast against each other, under two key words."""
    schedule = schedule_of(key)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(1, rounds + 1):
        x = steps.add(x, y)
        y = steps.mix(x, y, _ROTATIONS[(i - 1) % 8])
        if i % 4 == 0:
            x = steps.inject(x, schedule[i // 4 % 3], 0)
            y = steps.inject(y, schedule[(i // 4 + 1) % 3], i // 4)
    return x, y
