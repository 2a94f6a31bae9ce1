"""Its import ends the interpreter."""

import os

os._exit(7)
