"""A Llama in plain functions on any array library, and what reads its weights and its text from a GGUF file.

Letters in the comments: S tokens that go in at once, E width of the model, H heads of queries and Hkv of keys and values,
D width of a head, F width inside the feed-forward part, V tokens of the vocabulary.
"""
