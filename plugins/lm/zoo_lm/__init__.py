"""Language-model architectures for the zoo, one a file: `build` composes one from `zoo.nn`, and two key maps beside it say
what transformers calls its weights. The cards are in `zoo.toml`; importing this package costs nothing.

A key map renames, splits and joins; it computes nothing. What it does not know it passes on, so that a strict load
(`zoo.api.load_strict`) shows it. The state dict that transformers' own class has in memory survives
`to_transformers(from_transformers(state))` unchanged. There a tied tensor has a key for each place that uses it; here the
second key is left out when the two tensors are equal, and put back on the way out.
"""
