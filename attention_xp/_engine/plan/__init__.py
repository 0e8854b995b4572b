"""Which tiles are visited, from what the rules of a mask say of whole rectangles."""
