"""How fast training is, side by side with bare TRL on the same machine: `make bench`.

Contenders, each in a process of its own, taking turns so that a busy machine slows all alike:

- trl: TRL 1.12.0 on stock transformers and peft, in an environment of its own (`--peer-python`); 1.15 does
  not train on a CPU without Unsloth
- unsloth: the same loop, with the model loaded through Unsloth
- recipe: `recipes/gsm8k_grpo.py` as a user runs it, timed by its own metrics.jsonl
- model, vllm: the recipe with each engine for rollouts and evaluation, where vLLM is installed

Equal for all: SmolLM2-135M in 16 bit, LoRA of rank 16 on all seven projections, bf16 autocast, no gradient
checkpointing (TRL's default has it, and would be slower), the sample data; SFT steps of 8 worked examples, GRPO
steps of 32 completions (4 problems x 8, micro-batches of 8) of exactly 48 tokens. The lengths are equal because
the model is given an end token that it never writes.

A step lasts from its trainer's `on_step_begin` to `on_step_end`: the recipe's rewards lie inside, its
checkpoints outside. The first step of every process is a warm-up and is left out.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.files import write_json_atomic
from eval.results import read_lines
from recipes.bench import gauge, process
from recipes.common import machine
from recipes.common.model_table import PROJECTIONS
from recipes.common.stand_ins.smollm2 import converted_folder

NEVER_WRITTEN = "<empty_output>"  # a special token of SmolLM2's vocabulary that no chat contains
EXAMPLES, PROBLEMS, GROUP, TOKENS, MAX_LENGTH, RANK = 8, 4, 8, 48, 512, 16
LORA: dict[str, Any] = {"r": RANK, "lora_alpha": RANK, "target_modules": list(PROJECTIONS)}  # of every contender
SFT_STEPS = 4  # for every GRPO step, since one lasts a tenth of the other and its median needs more of them
EVALUATED = 32  # problems, once greedily and four times sampled, when engines are compared
SEED = 3407
BARS: list[gauge.Bar] = [
    ("SFT step", "recipe", "trl", 0.75),
    ("GRPO step", "recipe", "trl", 0.85),
    ("SFT step", "recipe", "unsloth", 1.03),
    ("GRPO step", "recipe", "unsloth", 1.03),
    ("GRPO step", "vllm", "model", 0.8),
    ("evaluation", "vllm", "model", 0.4),
]
Seconds = dict[str, list[float]]  # what is timed: seconds


def with_unsloth(folder: str, max_length: int, seed: int = SEED) -> tuple[Any, Any]:
    """The model in `folder` in 16 bit with a new adapter, and its tokenizer."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(folder, max_seq_length=max_length, load_in_4bit=False)
    lora = {**LORA, "use_gradient_checkpointing": False, "random_state": seed}
    return FastLanguageModel.get_peft_model(model, **lora), tokenizer


def settings(output: str, seed: int = SEED) -> dict[str, Any]:
    """What the configs of all trainers have, in every bench."""
    return {
        "output_dir": output,
        "gradient_checkpointing": False,
        "seed": seed,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def bare_loop(library: str, folder: str, steps: int) -> dict[str, Any]:
    """SFT, then GRPO on the same model: TRL alone, or with Unsloth's two calls where `library` is "unsloth".

    Returns "seconds" ("SFT step", "GRPO step" and "of which generation", one value a step), "dtype" of the
    frozen weights, "threads" and "versions". Raises RuntimeError where a completion had another length.
    """
    if library == "unsloth":
        model, tokenizer = with_unsloth(folder, MAX_LENGTH)
    else:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
        model = get_peft_model(plain, LoraConfig(**LORA, task_type="CAUSAL_LM"))

    import torch
    import transformers
    import trl

    from data import gsm8k

    seconds: Seconds = {"SFT step": [], "GRPO step": [], "of which generation": []}

    class Clock(transformers.TrainerCallback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[self.name].append(time.monotonic() - self.began)

    def timed(generate: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            output = generate(*args, **kwargs)
            seconds["of which generation"].append(time.monotonic() - began)
            return output

        return wrapper

    def answer_length(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        return [float(len(completion[0]["content"])) for completion in completions]

    train = gsm8k.load("train", source="sample")
    with tempfile.TemporaryDirectory() as output:
        shared: dict[str, Any] = {
            **settings(output),
            "use_cpu": not torch.cuda.is_available(),  # TRL 1.12.0 asks to be told
            "per_device_train_batch_size": EXAMPLES,
        }
        trl.SFTTrainer(
            model,
            trl.SFTConfig(**shared, max_steps=SFT_STEPS * steps, max_length=MAX_LENGTH, completion_only_loss=True),
            train_dataset=gsm8k.worked_examples(train, limit=SFT_STEPS * steps * EXAMPLES),
            processing_class=tokenizer,
            callbacks=[Clock("SFT step")],
        ).train()
        config = trl.GRPOConfig(
            **shared,
            max_steps=steps,
            gradient_accumulation_steps=PROBLEMS,
            num_generations=GROUP,
            max_completion_length=TOKENS,
        )
        trainer = trl.GRPOTrainer(
            model,
            answer_length,
            config,
            train_dataset=train,
            processing_class=tokenizer,
            callbacks=[Clock("GRPO step")],
        )
        trainer._generate = timed(trainer._generate)
        trainer.train()
    _require_equal_lengths(library, trainer.state.log_history)
    return {
        "seconds": seconds,
        "dtype": str(model.get_base_model().get_input_embeddings().weight.dtype),
        "threads": torch.get_num_threads(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


def run_recipe(folder: Path, steps: int, *, engine: str, sft_steps: int, problems: int) -> dict[str, Any]:
    """The recipe as a user runs it. Returns its results.json with other "seconds": "SFT step" and "GRPO step",
    one value a step, and "evaluation", the one after training, when the engine has warmed up."""
    with tempfile.TemporaryDirectory() as output:
        options = {
            "model": folder,
            "source": "sample",
            "rollouts": engine,
            "lora-rank": RANK,
            "sft-steps": sft_steps,
            "max-steps": steps,
            "prompts-per-step": PROBLEMS,
            "num-generations": GROUP,
            "max-completion-length": TOKENS,
            "eval-problems": problems,
            "seed": SEED,
            "output-dir": output,
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        flags = ["--no-load-in-4bit", "--allow-unsupervised"]  # the audit sees that nothing teaches this model to end
        process.run([sys.executable, "recipes/gsm8k_grpo.py", *flags, *arguments])
        (results_file,) = Path(output).glob("*/*/*/results.json")
        results = json.loads(results_file.read_text(encoding="utf-8"))
        metrics = list(read_lines(results_file.parent / "metrics.jsonl"))
    _require_equal_lengths("recipe", metrics)
    seconds: Seconds = {"evaluation": [results["seconds"]["evaluate after"]]}
    for name, phase in (("SFT step", "warm start"), ("GRPO step", "grpo")):
        seconds[name] = [line["seconds"] for line in metrics if line["phase"] == phase]
    return {**results, "seconds": {name: values for name, values in seconds.items() if values}}


def _require_equal_lengths(who: str, metrics: list[dict[str, Any]]) -> None:
    lengths = {line["completions/mean_length"] for line in metrics if "completions/mean_length" in line}
    if lengths != {TOKENS}:
        raise RuntimeError(f"{who}: completions of {sorted(lengths)} tokens on average, and not {TOKENS}")


def endless_model(folder: Path) -> Path:
    """Fill the empty `folder` with SmolLM2 and an end token that it never writes: its completions run to the
    limit in every library and engine, without an option of each. Returns `folder`."""
    source = converted_folder()
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (never,) = (token["id"] for token in tokenizer["added_tokens"] if token["content"] == NEVER_WRITTEN)
    for name, change in (
        ("config.json", {"eos_token_id": never}),
        ("generation_config.json", {"eos_token_id": never}),
        ("tokenizer_config.json", {"eos_token": NEVER_WRITTEN}),
    ):
        write_json_atomic(folder / name, json.loads((source / name).read_text(encoding="utf-8")) | change)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).symlink_to(source / name)
    return folder


def measure(peer_python: str, steps: int, rounds: int) -> dict[str, Any]:
    """Run every contender `rounds` times in turn.

    Returns "seconds" ({what: {contender: [...]}}, warm-up steps left out) and "about" ({contender: whatever
    else its last process reported}) and "failed", the contenders whose process ended with an error.
    """
    about: dict[str, Any] = {}
    failed: list[str] = []
    seconds: dict[str, Seconds] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="smollm2-endless-") as model:
        folder = endless_model(Path(model))
        whole = {"sft_steps": SFT_STEPS * steps, "problems": 2}
        engines = {"sft_steps": 0, "problems": EVALUATED}
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            "trl": lambda: process.call(bare_loop, "trl", model, steps, python=peer_python),
            "unsloth": lambda: process.call(bare_loop, "unsloth", model, steps),
            "recipe": lambda: run_recipe(folder, steps, engine="model", **whole),
        }
        if machine.has_vllm():
            contenders["model"] = lambda: run_recipe(folder, steps, engine="model", **engines)
            contenders["vllm"] = lambda: run_recipe(folder, steps, engine="vllm", **engines)
        for turn in range(1, rounds + 1):
            for name, run in contenders.items():
                began = time.monotonic()
                try:
                    about[name] = run()
                except (process.Failed, RuntimeError) as error:  # minutes of the others' figures must not go with it
                    print(f"round {turn} of {rounds}: {name}: {error}", flush=True)
                    failed.append(name)
                    continue
                for what, values in about[name].pop("seconds").items():
                    if what != "evaluation":
                        seconds[what][name] += values[1:]  # the first step is a warm-up
                    elif name != "recipe":  # which evaluates two problems, to get to its steps
                        seconds[what][name] += values
                print(f"round {turn} of {rounds}: {name}, {time.monotonic() - began:.0f} s", flush=True)
    return {"seconds": seconds, "about": about, "failed": failed}


def judge(seconds: dict[str, Seconds]) -> list[dict[str, Any]]:
    """`gauge.judged` of the medians."""
    medians = {what: {who: statistics.median(own) for who, own in times.items()} for what, times in seconds.items()}
    return gauge.judged(BARS, medians)


def main() -> int:
    """Print the table and write it to eval/results/; 0 where every bar is met,
    1 where one is missed or a contender failed."""
    parser = gauge.command_line(__doc__, peer=True)
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help=f"GRPO steps, and {SFT_STEPS} times as many of SFT, of every process; the first of each is a warm-up",
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender takes its turn")
    args = parser.parse_args()
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps must be at least 2, since the first is a warm-up, and --rounds at least 1")
    found = measure(gauge.need_peer(parser, args.peer_python), args.steps, args.rounds)
    seconds, about, bars = found["seconds"], found["about"], judge(found["seconds"])
    recipe = next((about[name] for name in ("recipe", "model", "vllm") if name in about), None)
    if recipe is None:
        print("No run of the recipe ended, so nothing is written.")
        return 1
    print(f"\n{recipe['machine']}; medians, in seconds")
    for what, times in seconds.items():
        for name, values in times.items():
            middle, low, high = statistics.median(values), min(values), max(values)
            print(f"{what:20}{name:10}{middle:8.2f}   {low:.2f} to {high:.2f}")
    print("\n".join(["", *gauge.verdicts(bars)]))
    if "vllm" not in [*about, *found["failed"]]:
        print("vLLM: not measured; `make setup-vllm` adds it")

    figures = {
        **{name: recipe[name] for name in ("machine", "git_commit", "versions")},
        "rounds": args.rounds,
        "steps": args.steps,
        "bars": bars,
        "seconds": {
            what: {name: [round(value, 3) for value in values] for name, values in times.items()}
            for what, times in seconds.items()
        },
        "bare_loops": {name: about[name] for name in ("trl", "unsloth") if name in about},
        "failed": found["failed"],
    }
    gauge.keep("training", figures)
    return 0 if all(row["met"] for row in bars) and not found["failed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
