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

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.files import read_json, write_json_atomic
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


def with_peft(
    folder: str, *, lora: dict[str, Any] = LORA, seed: int = SEED, classify: bool = False, **options: Any
) -> tuple[Any, Any]:
    """The same by transformers, which takes the `options`, and PEFT; to `classify`, a head writes one number."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    options = {"config": AutoConfig.from_pretrained(folder), "dtype": torch.bfloat16, **options}
    kind, task = AutoModelForCausalLM, "CAUSAL_LM"
    if classify:
        kind, task = AutoModelForSequenceClassification, "SEQ_CLS"
        options["config"].num_labels = 1
    model = get_peft_model(kind.from_pretrained(folder, **options), LoraConfig(**lora, task_type=task))
    return model, AutoTokenizer.from_pretrained(folder)


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


def clock(seconds: list[float]) -> Any:
    """A callback that adds what each step takes to `seconds`."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(round(time.monotonic() - self.began, 3))
            self.on_step_begin()  # TRL's PPO has no event for that

        on_train_begin = on_step_begin

    return Clock()


def bare_loop(library: str, folder: str, steps: int) -> Seconds:
    """SFT, then GRPO on the same model: TRL alone, or with Unsloth's two calls where `library` is "unsloth".

    Returns the seconds of each "SFT step" and "GRPO step". Raises RuntimeError where a completion had another length.
    """
    model, tokenizer = with_unsloth(folder, MAX_LENGTH) if library == "unsloth" else with_peft(folder)

    import torch
    import trl

    from data import gsm8k

    def answer_length(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        return [float(len(completion[0]["content"])) for completion in completions]

    seconds: Seconds = {"SFT step": [], "GRPO step": []}
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
            callbacks=[clock(seconds["SFT step"])],
        ).train()
        config = trl.GRPOConfig(
            **shared,
            max_steps=steps,
            gradient_accumulation_steps=PROBLEMS,
            num_generations=GROUP,
            max_completion_length=TOKENS,
        )
        data = {"train_dataset": train, "processing_class": tokenizer}
        trainer = trl.GRPOTrainer(model, answer_length, config, **data, callbacks=[clock(seconds["GRPO step"])])
        trainer.train()
    _require_equal_lengths(library, trainer.state.log_history)
    return seconds


def run_recipe(folder: str, steps: int, *, engine: str, whole: bool) -> Seconds:
    """The recipe as a user runs it: seconds of each "GRPO step" and, of the `whole`, each "SFT step", with two problems
    evaluated to get there; else "evaluation" after training, when the engine has warmed up."""
    with tempfile.TemporaryDirectory() as output:
        options = {
            "model": folder,
            "source": "sample",
            "rollouts": engine,
            "lora-rank": RANK,
            "sft-steps": SFT_STEPS * steps if whole else 0,
            "max-steps": steps,
            "prompts-per-step": PROBLEMS,
            "num-generations": GROUP,
            "max-completion-length": TOKENS,
            "eval-problems": 2 if whole else EVALUATED,
            "seed": SEED,
            "output-dir": output,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        flags = ["--no-load-in-4bit", "--allow-unsupervised"]  # the audit sees that nothing teaches this model to end
        process.run([sys.executable, "recipes/gsm8k_grpo.py", *flags, *arguments])
        (results,) = Path(output).glob("*/*/*/results.json")
        evaluation = read_json(results)["seconds"]["evaluate after"]
        metrics = list(read_lines(results.with_name("metrics.jsonl")))
    _require_equal_lengths("recipe", metrics)
    steps_of = {
        name: [line["seconds"] for line in metrics if line["phase"] == phase]
        for name, phase in (("SFT step", "warm start"), ("GRPO step", "grpo"))
    }
    return steps_of if whole else {"GRPO step": steps_of["GRPO step"], "evaluation": [evaluation]}


def _require_equal_lengths(who: str, metrics: list[dict[str, Any]]) -> None:
    lengths = {line["completions/mean_length"] for line in metrics if "completions/mean_length" in line}
    if lengths != {TOKENS}:
        raise RuntimeError(f"{who}: completions of {sorted(lengths)} tokens on average, and not {TOKENS}")


def endless_model(folder: Path) -> Path:
    """Fill the empty `folder` with SmolLM2 and an end token that it never writes: its completions run to the
    limit in every library and engine, without an option of each. Returns `folder`."""
    source = converted_folder()
    added = read_json(source / "tokenizer.json")["added_tokens"]
    (never,) = (token["id"] for token in added if token["content"] == NEVER_WRITTEN)
    for name, change in (
        ("config.json", {"eos_token_id": never}),
        ("generation_config.json", {"eos_token_id": never}),
        ("tokenizer_config.json", {"eos_token": NEVER_WRITTEN}),
    ):
        write_json_atomic(folder / name, read_json(source / name) | change)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).symlink_to(source / name)
    return folder


def measure(peer_python: str, steps: int, rounds: int) -> tuple[dict[str, Seconds], list[str]]:
    """Run every contender `rounds` times in turn. Returns {what: {contender: seconds}}, without the steps that warm up,
    and the contenders that failed."""
    failed: list[str] = []
    seconds: dict[str, Seconds] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="smollm2-endless-") as model:
        endless_model(Path(model))
        contenders: dict[str, Callable[[], Seconds]] = {
            "trl": lambda: process.call(bare_loop, "trl", model, steps, python=peer_python),
            "unsloth": lambda: process.call(bare_loop, "unsloth", model, steps),
            "recipe": lambda: run_recipe(model, steps, engine="model", whole=True),
        }
        if not machine.vllm_fault():
            contenders["model"] = lambda: run_recipe(model, steps, engine="model", whole=False)
            contenders["vllm"] = lambda: run_recipe(model, steps, engine="vllm", whole=False)
        for name, found in gauge.in_turn([*contenders.items()] * rounds):
            if found is None:
                failed.append(name)
                continue
            for what, values in found.items():
                seconds[what][name] += values if what == "evaluation" else values[1:]
    return seconds, failed


def judge(seconds: dict[str, Seconds]) -> list[dict[str, Any]]:
    """`gauge.judged` of the medians."""
    medians = {what: {who: statistics.median(own) for who, own in times.items()} for what, times in seconds.items()}
    return gauge.judged(BARS, medians)


def main() -> int:
    """Print the table and write it to eval/results/; 0 where every bar is met and no contender failed, else 1."""
    parser = gauge.command_line(__doc__, peer=True)
    steps = f"of GRPO, and {SFT_STEPS} times as many of SFT, in every process; the first of each is a warm-up"
    parser.add_argument("--steps", type=int, default=5, help=steps)
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender takes its turn")
    args = parser.parse_args()
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps must be at least 2, since the first is a warm-up, and --rounds at least 1")
    seconds, failed = measure(gauge.need_peer(parser, args.peer_python), args.steps, args.rounds)
    about, bars = gauge.about(), judge(seconds)
    print(f"\n{about['machine']}; in seconds")
    rows = [
        [what, name, *(f"{pick(values):.2f}" for pick in (statistics.median, min, max))]
        for what, times in seconds.items()
        for name, values in times.items()
    ]
    print("\n".join([*gauge.aligned([["", "", "median", "least", "most"], *rows]), "", *gauge.verdicts(bars)]))
    if fault := machine.vllm_fault():
        print(f"vLLM: not measured, since {fault}")
    figures = {"rounds": args.rounds, "steps": args.steps, "bars": bars, "seconds": seconds, "failed": failed}
    gauge.keep("training", about | figures)
    return 0 if all(row["met"] for row in bars) and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
