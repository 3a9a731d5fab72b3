"""A model small enough to learn in seconds, and a task that only a reward can teach it: for tests and benchmarks.

Nothing here imports Unsloth before it trains, so that a peer without it can read the problems and the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics import wilson
from eval.sampling import ModelSampler
from recipes.common.stand_ins.tiny import CHATML

DIGITS = [str(digit) for digit in range(10)]
# How far the nano model's pre-training counts on from the prompt. One in ten is the successor; the rest makes it
# look at the prompt, without which a reward could not teach it in seconds.
STEPS = [1, 3, 3, 3, 5, 5, 5, 5, 8, 8]
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Nano:
    """A Llama of 300,000 parameters that learned from scratch, in seconds, to answer "7 ?" with a random digit.

    The successor task is what reinforcement can teach it: 8 is right, and it is right one time in ten. Every
    method that claims to learn from a reward, a preference or a verdict should beat that here in seconds.

        model, tokenizer = load_lora(nano.folder)
        before = nano.solved(model, tokenizer)  # (25, 250): one in ten
        ...train on nano.dataset() with nano.successor_reward...
        after = nano.solved(model, tokenizer)
        assert nano.interval(*before)[1] < nano.interval(*after)[0]
    """

    folder: Path

    @staticmethod
    def dataset() -> Any:
        """The ten problems: `prompt` (conversational) and `answer`, the digit after the one in the prompt."""
        from datasets import Dataset

        prompts = [[{"role": "user", "content": f"{digit} ?"}] for digit in DIGITS]
        return Dataset.from_dict({"prompt": prompts, "answer": [DIGITS[(i + 1) % 10] for i in range(10)]})

    @staticmethod
    def successor_reward(completions: Sequence[Any], answer: Sequence[str], **kwargs: Any) -> list[float]:
        """1.0 for the digit after the one in the prompt and nothing else, 0.0 otherwise."""
        texts = [completion[0]["content"].strip() for completion in completions]
        return [float(text == gold) for text, gold in zip(texts, answer, strict=True)]

    def solved(self, model: Any, tokenizer: Any, rounds: int = 25) -> tuple[int, int]:
        """How many of 10 x `rounds` fresh samples at temperature 1 are right, and how many samples that is."""
        problems = self.dataset()
        prompts, answers = problems["prompt"][:] * rounds, problems["answer"][:] * rounds
        sampler = ModelSampler(model, tokenizer)
        written = sampler.sample(prompts, temperature=1.0, max_tokens=4, seed=1)
        messages = [[{"role": "assistant", "content": completion.text}] for completion in written]
        return int(sum(self.successor_reward(messages, answers))), len(answers)

    def solved_with(self, adapter: str) -> tuple[int, int]:
        """The same of the model with the adapter in folder `adapter`."""
        from unsloth import FastLanguageModel  # isort: skip  it must come before peft
        from peft import PeftModel

        base, tokenizer = FastLanguageModel.from_pretrained(str(self.folder), max_seq_length=512, load_in_4bit=False)
        return self.solved(PeftModel.from_pretrained(base, adapter), tokenizer)

    @staticmethod
    def interval(right: int, n: int) -> tuple[float, float]:
        """Wilson 95 % interval of a count of right answers."""
        return wilson(right, n)


def random_digits(folder: Path) -> Nano:
    """The model of `Nano`, pre-trained into `folder`."""
    chats = [
        [{"role": "user", "content": f"{n} ?"}, {"role": "assistant", "content": str((n + step) % 10)}]
        for n in range(10)
        for step in STEPS
    ]
    return pretrain(folder, chats, steps=60)


def pretrain(folder: Path, chats: list[Chat], steps: int) -> Nano:
    """Train a nano model from scratch on the one-digit answers of these conversations and save it in `folder`."""
    import unsloth  # noqa: F401, I001  it must come before transformers
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, "[unk]", "system", "user", "assistant", "?", *DIGITS]
    words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="[unk]",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.06,  # at this width, the usual 0.02 idles on a plateau first
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        rows = tokenizer.apply_chat_template(chats, return_dict=False)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        labels = torch.tensor([[-100] * (len(row) - 2) + row[-2:] + [-100] * (longest - len(row)) for row in rows])
        for _ in range(steps):  # they learn the digit and the end token, not the prompt
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Nano(folder)
