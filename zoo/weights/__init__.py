"""Weights: where they come from, the cache, hashes, strict load; what plugins' formats add; tensors that are computed once and kept."""
