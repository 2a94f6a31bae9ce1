"""600 texts, and what llama.cpp makes of them with the published file: kept in llama_cpp_tokens.json, for the tests to compare.

python plugins/smollm/tests/llama_cpp_tokens.py SmolLM2-135M-Instruct.Q4_1.gguf   # by a Python that has llama-cpp-python
"""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

KEPT = Path(__file__).with_suffix(".json")
COUNT = 600
SCRIPTS = [
    (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17F), (0x370, 0x3FF), (0x410, 0x44F), (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939),
    (0xE01, 0xE30), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F),
]  # fmt: skip
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "It's",
    "don't",
    "we'll",
    "I'd",
    "HTTPServer",
    "naïve",
    "coöperate",
    "straße",
    "Здравствуй",
    "你好",
    "こんにちは",
    "مرحبا",
    "שלום",
]
CODE = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}", "SELECT * FROM t WHERE a >= 3.14;",
        '<div class="x">&nbsp;</div>', "x = {'a': [1, 2, 3], \"b\": None}  # note", 'fn main() { println!("{}", 0xFF); }']  # fmt: skip
SPACES = [" ", "  ", "    ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000"]
EMOJI = ["👍🏽", "👨‍👩‍👧", "🇫🇷", "❤️", "é", "e\u0301", "ﬁ", "½", "①", "—", "…", "“x”"]
MARKS = ["...", "!?", "--", "==", "://", "<|im_start|>", "<|im_end|>", "</s>", "'s", "'S", "''"]


def texts() -> list[str]:
    """The same every time: words, digits, runs of blanks, code, scripts, emoji and marks, mixed."""
    chance = random.Random(20)
    return ["".join(_piece(chance) for _ in range(chance.randint(1, 12))) for _ in range(COUNT)]


def _piece(chance: random.Random) -> str:
    kind = chance.randrange(8)
    if kind == 0:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 6)))
    if kind == 1:
        return str(chance.randrange(10 ** chance.randint(1, 18)))
    if kind == 2:
        return "".join(chance.choices(SPACES, k=chance.randint(1, 5)))
    if kind == 3:
        return chance.choice(CODE)
    if kind == 4:
        low, high = chance.choice(SCRIPTS)
        return "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 8)))
    if kind == 5:
        return chance.choice(EMOJI)
    if kind == 6:
        return chance.choice(MARKS)
    return f"{chance.uniform(-1e6, 1e6):.{chance.randint(0, 6)}f}"


def digest(ids: Sequence[int]) -> str:
    """Of the ids of one text, short enough to keep hundreds."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def main() -> None:
    import llama_cpp

    path = Path(sys.argv[1])
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    digests = [digest(model.tokenize(text.encode(), add_bos=False, special=False)) for text in texts()]
    kept = {
        "llama_cpp_python": llama_cpp.__version__,
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "digests": digests,
    }
    KEPT.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
    print(f"{len(digests)} texts by llama-cpp-python {llama_cpp.__version__}")


if __name__ == "__main__":
    main()
