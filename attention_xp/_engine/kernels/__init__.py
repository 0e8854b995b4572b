"""The kernels, and the choice between them."""
