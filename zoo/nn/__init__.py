"""The parts that sequence models are made of, one operation a file, plain PyTorch.

    norm.py          RMS normalisation                      cache.py           keys and values of what was read already
    positions.py     rotary, ALiBi, relative, learned, sinusoidal
    attention.py     many, grouped or one key/value head    mixture.py         many feed-forwards, few used for each token
    feed_forward.py  dense and gated                        block.py           attention and feed-forward, each beside a residual
    stack.py         blocks over a sequence                 decoder.py         tokens -> the logits of the next one
    bidirectional.py masked language models                 encoder_decoder.py a decoder that reads what an encoder wrote
    linear.py        a linear layer in few bits             kernels.py         a whole model in few bits
    step.py          one decode step as straight code
    tokenizer.py     what every tokenizer refuses, and one that needs no file

Shapes follow `zoo.registry.modality` (B batch, T tokens, W decoder width, H heads) with five more letters: G key/value heads, K width
of a head, S slots of a cache or tokens of a source, V vocabulary, E experts. Nothing here knows a model by name: an
architecture is a function that composes these parts, in the plugin that brings it.
"""
