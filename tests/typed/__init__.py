"""Programs as users write them: type checkers find nothing to complain about in them, and they run."""
