"""The walker of every library without one of its own: Python loops, and torch's door to derivatives."""
