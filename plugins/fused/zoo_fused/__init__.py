"""Decoders straight from GGUF's blocks: one native function for a whole step, and linear layers over the same bytes.

native/     C++, one file for each instruction set      blocks.py    the types, their layout, and both in plain PyTorch
compile.py  finds or builds the shared object           quantise.py  float32 -> blocks, by the published formulas
native.py   what it offers, by ctypes                   linear.py    layers that keep their weights in blocks
ops.py      the same as operations of torch             step.py      a decoder's step, and its plan
"""
