"""A small character-level GPT, written three times: in NumPy with its gradients by hand, in PyTorch and in JAX.

Letters in the comments: B windows of a batch, S characters of a window, N = B * S, L layers, H heads, E width of the
model, D = E / H width of a head, V characters of the alphabet.
"""
