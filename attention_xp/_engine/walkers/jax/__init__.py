"""JAX's walker: loops inside the compiled program, and its door to derivatives."""
