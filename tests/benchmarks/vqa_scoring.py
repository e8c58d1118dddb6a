"""
Time of `medical_vqa` over as many answers as PathVQA's test split has, with candidates and without.

    python tests/benchmarks/vqa_scoring.py

Answers of one to nine made-up words, half of the questions closed, 1,000 bootstrap resamples; processor seconds.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from logramed.eval.metrics.medical_vqa import release_protocol, vqa_scoring


MODULES = (release_protocol, vqa_scoring)
CACHED = [function for module in MODULES for function in vars(module).values() if hasattr(function, "cache_clear")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time of medical_vqa.")
    parser.add_argument("--num_questions", type=int, default=6761)
    parser.add_argument("--num_candidates", type=int, default=400)
    arguments = parser.parse_args(argv)
    generator = np.random.default_rng(0)
    texts = [
        " ".join(f"word{word}" for word in generator.integers(3000, size=1 + place % 9))
        for place in range(arguments.num_questions + arguments.num_candidates)
    ]
    candidates, predictions = texts[: arguments.num_candidates], texts[arguments.num_candidates :]
    num_open = arguments.num_questions // 2
    num_closed = arguments.num_questions - num_open
    references = [candidates[place % len(candidates)] for place in range(num_open)] + ["yes"] * num_closed
    kinds = ["OPEN"] * num_open + ["CLOSED"] * num_closed
    print("| protocol | questions | candidates | seconds | without candidates | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for protocol in ("strict", "release"):
        seconds = [
            seconds_of(predictions, references, kinds, protocol=protocol, candidates=choice)
            for choice in (candidates, None)
        ]
        sizes = f"{arguments.num_questions} | {len(candidates)}"
        print(f"| {protocol} | {sizes} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.1f} |")


def seconds_of(*columns: Sequence, **options) -> float:
    for function in CACHED:
        function.cache_clear()
    start = time.process_time()
    vqa_scoring.evaluate_answers(*columns, **options)
    return time.process_time() - start


if __name__ == "__main__":
    main()
