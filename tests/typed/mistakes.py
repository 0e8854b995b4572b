"""Calls that type checkers must report, each on a line that ends in ``# reported``."""

import numpy as np

from attention_xp import flash_attention, init_multi_head_params, scaled_dot_product_attention, varlen_attention

x = np.ones((2, 4, 5, 8))
bounds = np.asarray([0, 2])

flash_attention(x, x, x, is_casual=True)  # reported
flash_attention(x, x, x, attn_mask=x > 0.0)  # reported
flash_attention(x, x, x, scale="big")  # reported
flash_attention(x, x, x, impl="quick")  # reported
flash_attention(x, x, x, window=(1, 2, 3))  # reported
flash_attention([[1.0]], x, x)  # reported
flash_attention(x, x, x, mask="causal")  # reported
flash_attention(x, x, x).no_such_method()  # reported
shape = flash_attention(x, x, x, return_lse=True).shape  # reported
shape = scaled_dot_product_attention(x, x, x, return_weights=False)[1].shape  # reported
varlen_attention(x[0], x[0], x[0], bounds, key_lengths=3)  # reported
varlen_attention(x[0], x[0], x[0], bounds, mask=x > 0.0)  # reported
init_multi_head_params(8, 2, like="numpy")  # reported
