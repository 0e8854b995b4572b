"""The walker of every library without one of its own: Python loops, which torch's walker uses as well."""
