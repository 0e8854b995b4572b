"""``python -m attention_xp``: check, measure and explain attention on this machine, and look at that of a model."""

import sys

from attention_xp._command.main import main

if __name__ == "__main__":
    sys.exit(main())
