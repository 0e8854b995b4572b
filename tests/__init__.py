"""The test suite: one set of tests, every backend."""
