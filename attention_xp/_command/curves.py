"""Time against length, of this package and of another."""

from dataclasses import dataclass
from functools import partial
from statistics import median

from attention_xp._command.calls import Call
from attention_xp._command.duel import Pace, duel, take_turn
from attention_xp._command.peers import FORMULA, has_kernel, peer
from attention_xp._command.places import Place
from attention_xp._command.screen import tell_progress

__all__ = ["Point", "measured"]

MOST_SCORES = 2**28  # of all heads, up to which the formula has a chance to hold them
PACE = Pace(rounds=7, turn=0.05, limit=6.0)


@dataclass(frozen=True)
class Point:
    """Seconds at one length, of the pair with the median ratio; ours alone where the other could not hold the scores."""

    length: int
    other: str
    ours: float
    theirs: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.ours / self.theirs


def measured(places: list[Place], calls: list[Call]) -> dict[Place, list[Point]]:
    """Measure all calls at each place."""
    curves: dict[Place, list[Point]] = {place: [] for place in places}
    work = [(place, call) for place in places for call in calls]
    for done, (place, call) in enumerate(work):
        tell_progress(done, len(work), f"{place.backend} on {place.device_name}: {call.queries}")
        curves[place].append(_point(place, call))
    tell_progress(len(work), len(work), "done")
    return curves


def _point(place: Place, call: Call) -> Point:
    arrays = call.arrays(place)
    ours = call.ours(place, arrays)
    if not has_kernel(place) and call.heads * call.queries * call.keys > MOST_SCORES:
        turns = [take_turn(ours, 1, untimed=int(i == 0)).wall for i in range(3)]
        return Point(call.queries, FORMULA, median(turns))
    name, theirs = peer(place, call, arrays)
    found = duel(partial(take_turn, ours), partial(take_turn, theirs), PACE)
    return Point(call.queries, name, *(turn.wall for turn in found.middle))
