"""What JAX has compiled: a process can hold only so much of it."""

import sys
from typing import Any

from tests._backends import Backend

# Each program takes about a megabyte, which is never given back but used again, and up to fifty memory maps, of which
# Linux gives a process 65530.
LIMIT = 500
_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiled:
    """Counts the programs that JAX has compiled, and lets go of all of them when they are many."""

    def __init__(self) -> None:
        self.count = 0
        self._is_listening = False

    def listen(self) -> Any:
        """Start to count once JAX is imported, and return it."""
        jax = sys.modules.get(Backend.JAX.package)
        if jax is not None and not self._is_listening:
            jax.monitoring.register_event_duration_secs_listener(self._listen)
            self._is_listening = True
        return jax

    def bound(self) -> None:
        """Forget when there is too much to hold."""
        jax = self.listen()
        if jax is not None and self.count > LIMIT:
            jax.clear_caches()
            self.count = 0

    def _listen(self, event: str, _seconds: float, **_: Any) -> None:
        self.count += event == _EVENT


compiled = Compiled()
