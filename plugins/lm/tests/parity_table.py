"""Prints, as markdown, how far our architectures lie from those of transformers on the same random weights, in float32.

OMP_NUM_THREADS=1 python plugins/lm/tests/parity_table.py
"""

from lm_reference import bound, cases, measure


def table() -> str:
    rows = ["| architecture | reference | logits | gradients | with padding | with a cache |", "|---|---|---|---|---|---|"]
    for case in cases():
        measured = measure(case)
        cache = "-" if measured.cache is None else bound(measured.cache)
        cells = [
            case.name,
            f"`{case.reference}`",
            bound(measured.logits),
            bound(measured.gradients),
            bound(measured.padding),
            cache,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
