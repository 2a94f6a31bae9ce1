"""Linear layers in few bits: the layers, what all of them offer (`seam.py`), a whole model in them, one decode step."""
