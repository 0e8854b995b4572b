"""torch: the loop as an autograd function, and tensors on the CPU as NumPy's walker reads them."""
