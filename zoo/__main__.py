"""`python -m zoo` is the command `zoo`."""

import os
import sys

# `python -m` looks into the current folder first, the command `zoo` does not: a random.py or torch.py of the user's that lies
# there is not meant for us.
if sys.path and not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib would be imported from there
    sys.path.append(sys.path.pop(0))

from zoo.cli import command

command()
