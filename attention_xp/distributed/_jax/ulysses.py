from attention_xp.distributed._jax.gathered import gathered_attention as ulysses_attention  # placeholder
