"""What several tests share: Unsloth imported first, the tiny random model, and a nano model that can learn."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval.metrics import wilson
from eval.sampling import ModelSampler
from recipes.common.tiny import CHATML, tiny_folder

DIGITS = [str(digit) for digit in range(10)]
# How far the nano model's pre-training counts on from the prompt. One in ten is the successor; the rest makes it
# look at the prompt, without which a reward could not teach it in seconds.
STEPS = [1, 3, 3, 3, 5, 5, 5, 5, 8, 8]


@pytest.fixture
def real_rows() -> Callable[[str], str]:
    """`real_rows(name)`: the path of a full dataset's file in the folder that TUNEBOOK_REAL_ROWS names."""
    folder = os.environ.get("TUNEBOOK_REAL_ROWS")
    assert folder, "TUNEBOOK_REAL_ROWS names no folder: run `make test-real ROWS=FOLDER`"
    return lambda name: str(Path(folder).resolve() / name)


@pytest.fixture(scope="session")
def is_fast() -> Callable[[Callable[[], object]], bool]:
    """`is_fast(function)`: whether one of three calls takes under 50 ms of processor time; others may be busy."""

    def is_fast(function: Callable[[], object]) -> bool:
        for _ in range(3):
            start = time.process_time()
            function()
            if time.process_time() - start < 0.05:
                return True
        return False

    return is_fast


@pytest.fixture(scope="session")
def unsloth() -> ModuleType:
    """Unsloth, whose import (8 s) makes TRL trainable on a CPU. For tests that train in this process."""
    import unsloth

    return unsloth


@pytest.fixture(scope="session")
def load_lora(unsloth: ModuleType) -> Any:
    """`load_lora(folder) -> (model, tokenizer)`: a model folder with a fresh adapter, as the recipes load it."""

    def load(folder: Path, *, rank: int = 16) -> tuple[Any, Any]:
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=512, load_in_4bit=False
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing=False,
            random_state=0,
        )
        return model, tokenizer

    return load


@pytest.fixture(scope="session")
def tiny(unsloth: ModuleType) -> Path:
    """Folder of the random model behind `--smoke`. It knows nothing and writes noise."""
    return tiny_folder()


@pytest.fixture(scope="session")
def preference_trainer(unsloth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`preference_trainer(method, tokenizer, rows, **settings)`: TRL's trainer for these pairs, on a model of nothing.

    `method` is dpo, kto, reward, orpo or simpo; the rows, as a recipe's data module emits them, are tokenised for real.
    """
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from trl.experimental import cpo, orpo

    trainers: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig, {}),
        "kto": (trl.KTOTrainer, trl.KTOConfig, {}),
        "reward": (trl.RewardTrainer, trl.RewardConfig, {}),
        "orpo": (orpo.ORPOTrainer, orpo.ORPOConfig, {}),
        "simpo": (cpo.CPOTrainer, cpo.CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0}),
    }
    folder = str(tmp_path_factory.mktemp("preferences"))

    def build(method: str, tokenizer: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_labels=1,
            initializer_range=0.5,  # at the usual 0.02 all tokens are about as likely, whatever came before
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        reward = method == "reward"
        model = LlamaForSequenceClassification(config) if reward else LlamaForCausalLM(config)
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS" if reward else "CAUSAL_LM")
        trainer_class, config_class, defaults = trainers[method]
        arguments = config_class(output_dir=folder, report_to="none", **defaults | settings)
        return trainer_class(
            model=get_peft_model(model, lora),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    return build


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

    def dataset(self) -> Any:
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

    @staticmethod
    def interval(right: int, n: int) -> tuple[float, float]:
        """Wilson 95 % interval of a count of right answers."""
        return wilson(right, n)


@pytest.fixture(scope="session")
def train_nano(unsloth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`train_nano(chats, steps) -> Nano`: a nano model trained from scratch on the answers of these conversations."""
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

    def train(chats: list[list[dict[str, str]]], steps: int) -> Nano:
        folder = tmp_path_factory.mktemp("nano")
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

    return train


@pytest.fixture(scope="session")
def nano(train_nano: Any) -> Nano:
    """A pre-trained nano model; see `Nano`."""
    chats = [
        [{"role": "user", "content": f"{n} ?"}, {"role": "assistant", "content": str((n + step) % 10)}]
        for n in range(10)
        for step in STEPS
    ]
    return train_nano(chats, steps=60)
