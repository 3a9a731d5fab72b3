"""How much memory PairRM takes to compare 512 pairs of 300 tokens, beside its own size.

    python -m recipes.bench.pairrm_memory

The network has its published shapes and random weights, which take as much room and time as trained ones, and is read
from safetensors as they are. A pair is a prompt and two responses, all three of a length, and no two are the same; it
is read in both orders. Without a GPU.

Compared is the peak of the process's resident memory above what it holds when its libraries are imported, the model
itself included, with the bytes of the model's weights. The peak is read and reset through /proc, which is Linux's.
"""

import json
import os
import random
import string
import tempfile
import time
from pathlib import Path
from typing import Any

from recipes.bench import gauge, process
from recipes.common.stand_ins import tiny
from rewards import pairrm

BAR = 2.0  # times the model's own size
SEED = 3407


def build(folder: str) -> None:
    """Write the network to `folder`."""
    tiny.write_pairrm(Path(folder), initializer_range=0.02, **tiny.PAIRRM_SIZES)


def build_pairs(count: int, tokens: int, seed: int = SEED) -> tuple[list[str], list[str], list[str]]:
    """`count` different prompts, first and second responses; `tokens`, a multiple of 3, of the three together.

    For a tokenizer that reads each letter as one token, and adds four to a text: [CLS], prefix, a space and [SEP].
    """
    rng = random.Random(seed)
    prompts, first, second = (
        ["".join(rng.choices(string.ascii_lowercase, k=tokens // 3 - 4)) for _ in range(count)] for _ in range(3)
    )
    return prompts, first, second


def measure(folder: str, pairs: int, tokens: int) -> dict[str, Any]:
    """Load the PairRM in `folder` and compare `pairs` pairs of `tokens` tokens: memory and speed, ready for JSON."""
    import torch

    pairrm.model_class()  # with transformers: libraries belong to the start
    (prompts, first, second), start = build_pairs(pairs, tokens), gauge.reset_peak()
    judge = pairrm.load(folder)
    # The file is mapped, so that a weight takes room when it is first read: those of tokens in no text count too.
    sum(weight.sum() for weight in judge.model.state_dict().values())
    if {len(judge.encode(*row)) for row in zip(prompts, first, second, strict=True)} != {tokens}:
        raise RuntimeError(f"the pairs are not of {tokens} tokens: the tokenizer does not read letter by letter")
    began = time.perf_counter()
    judge.logits(prompts * 2, first + second, second + first)
    seconds = time.perf_counter() - began
    memory = gauge.memory(start)
    weights = sum(weight.nbytes for weight in judge.model.state_dict().values()) / 2**20
    return {
        "pairs": pairs,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "weights_mib": round(weights),
        **memory,
        "ratio": (ratio := round(memory["above_mib"] / weights, 3)),
        "bar": BAR,
        "met": ratio <= BAR,
        "pairs_per_second": round(pairs / seconds, 3),
    }


def main() -> int:
    """Print the figures and write them to eval/results/; 0 where the bar is met, 1 where it is missed."""
    parser = gauge.command_line(__doc__)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=300, help="of prompt and both responses, a multiple of 3")
    args = parser.parse_args()
    gauge.need_proc(parser)
    if args.pairs < 1 or args.tokens % 3 or not 15 <= args.tokens <= pairrm.MAX_LENGTH:
        parser.error("--pairs must be at least 1, and --tokens a multiple of 3 from 15 to 2048")
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        process.call(build, folder)  # what it leaves behind is not measured
        found = measure(folder, args.pairs, args.tokens)
    print(json.dumps(found, indent=2))
    gauge.keep("pairrm", gauge.about() | found)
    return 0 if found["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
