"""What the tests measure with lies beside them, whatever the working directory is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
