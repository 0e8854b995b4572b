"""Speed, measured as ratios: contenders in turns, medians of pairs."""
