"""Bridges for the zoo, one method a file: features of an encoder -> latents that a decoder reads (`zoo.api.Bridge`).

Every builder takes `input_width`, the width of the features, and `output_width`, that of the latents. The cards are in
`zoo.toml`; importing this package costs nothing. Features of several frames come frame after frame; padding among them, of
tokens or of whole frames, changes nothing, whatever it holds.
"""
