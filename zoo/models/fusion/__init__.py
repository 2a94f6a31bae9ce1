"""Media into a decoder: what an item is, how its numbers are kept, and the model that joins encoders, bridges and a decoder.

item.py         an image, a film, a sound: raw or encoded, and where it stands in a prompt
media_cache.py  keys and values of items, kept between calls
sense.py        one modality: its encoder, its bridge, and its way into the decoder
fused.py        a decoder with senses, asked like any decoder
"""
