"""NumPy's walker: threads that compute in place, each in buffers of its own."""
