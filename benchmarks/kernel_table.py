"""`zoo bench kernels` of five models, one after another: every installed kernel that applies, rows that lose included.

    python benchmarks/kernel_table.py [--threads 1] [--rounds 5]

Decoders write 12 tokens after 64, by 1 and 8 rows at once; encoders read 1 and 8 items. Speed is wall time, the median of the rounds, in which the kernels take
turns; in brackets the ratio to the model as it was built. The error of decoders is the divergence from float32's next-token distribution on a passage of English and the
share of equal likeliest tokens; of encoders the least cosine of four vectors. CLIP has random weights here, which are harder to round than trained ones.

Expected before measuring: for one token `fused` is first by 2.5x over `int4`, and int8 is slower than none; for eight rows `fused`, then int8; encoders are fastest compiled, by
2x in float32 and 3x in bfloat16; layer by layer bfloat16 gains for many rows alone, and nf4 and `published` lose everywhere, for they save memory and not time.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from machine import machine, progress, show

MODELS = (
    ("smollm/135m-instruct", "card"),
    ("timm/efficientnet_lite0", "card"),
    ("text/all-minilm-l6-v2", "card"),
    ("conse/lite0-minilm", "card"),
    ("clip/tiny", "none"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    show(machine())
    for name, weights in MODELS:
        progress(name)
        command = [str(Path(sys.executable).with_name("zoo")), "bench", "kernels", name, "--weights", weights]
        run = subprocess.run(
            [*command, "--threads", str(options.threads), "--rounds", str(options.rounds)],
            capture_output=True,
            text=True,
            check=False,
        )
        show(f"\n{name}{'' if weights == 'card' else ', random weights'}\n{run.stdout.rstrip() or run.stderr.rstrip()}")


if __name__ == "__main__":
    main()
