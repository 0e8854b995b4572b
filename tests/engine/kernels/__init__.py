"""Tests of the kernels, and of the choice between them."""
