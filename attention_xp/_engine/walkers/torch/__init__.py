"""torch's walker: the loop as an autograd function; tensors on the CPU are handed to NumPy's walker."""
