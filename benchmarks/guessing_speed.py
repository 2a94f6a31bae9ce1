"""What guessing ahead saves: SmolLM2-135M-Instruct in float32, alone, with tokens looked up, and with its own fused kernel as the draft.

    python benchmarks/guessing_speed.py [--threads 1] [--runs 3]

Two questions and a text to copy, greedy and drawn (temperature 0.8). The ways take turns, and the median of the runs counts, in processor time
and without the reading of the prompt. Every text is compared with the one written alone: a difference is an error.

Expected before measuring: a draft gains 2x greedy; drawn nothing, for a draft that names its likeliest token is rarely right there. It drew by
the random numbers of the answer instead, and then gains nearly as much. Looking up gains 2x on the text to copy and nothing on the questions.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from machine import machine, progress, show

import zoo
from zoo.decoding.sampling import Sampling

PASSAGE = (
    "The committee met on Tuesday to discuss the budget. After two hours it agreed to wait for the report of the auditors, "
    "which was promised for the end of the month, and to ask every department for a list of what it could do without."
)
PROMPTS = {
    "a question": "Explain in a few sentences how a refrigerator works.",
    "another": "Why is the sky blue, and why is it red in the evening?",
    "to copy": f"Repeat this text word for word, twice: {PASSAGE}",
}
TOKENS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    alone, fused = (
        zoo.open_language_model(zoo.ModelSpec("smollm/135m-instruct", kernel=kernel)) for kernel in ("float32", "fused")
    )
    drafted = replace(alone, draft=fused.decoder)
    ways = {"alone": (alone, 0), "--lookup 8": (alone, 8), "--draft, 4": (drafted, 4), "--draft, 8": (drafted, 8)}
    show(machine())
    for temperature in (0.0, 0.8):
        for name, prompt in PROMPTS.items():
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            tokens, text = 0, None
            for number in range(options.runs + 1):  # the first warms up, and fills the cache of prompts
                for way, (language, guessed) in ways.items():
                    start = time.process_time()
                    (answer,) = zoo.generate(
                        prompt,
                        model=language,
                        chat=True,
                        max_tokens=TOKENS,
                        sampling=Sampling(temperature=temperature, seed=7, lookup=guessed),
                    ).results
                    if number:
                        seconds[way].append(time.process_time() - start)
                    text = text or answer.text
                    if answer.text != text:
                        raise SystemExit(f"{way}: another text than alone: {answer.text!r}, not {text!r}")
                    tokens = len(alone.tokenizer.encode(answer.text)) + 1
                progress(f"{name}, run {number}")
            base = statistics.median(seconds["alone"])
            show(f"\n{name}, {'greedy' if not temperature else f'temperature {temperature}'}, {tokens} tokens")
            for way, found in seconds.items():
                median = statistics.median(found)
                show(f"  {way:<12} {tokens / median:>6.1f} tokens/s   {base / median:>5.2f}x alone")


if __name__ == "__main__":
    main()
