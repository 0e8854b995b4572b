"""JAX's walker: loops inside the compiled program, and rules for its derivatives."""
