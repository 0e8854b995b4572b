"""Speed and memory beside those of other libraries, measured as ratios: contenders in turns, medians of pairs."""
