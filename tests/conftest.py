"""What several tests share: Unsloth imported first, the tiny random model, and a nano model that can learn."""

import gc
import io
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data.source import rows_read
from recipes.common.stand_ins.nano import Nano, pretrain, random_digits
from recipes.common.stand_ins.tiny import tiny_folder


@pytest.fixture
def real_rows() -> Callable[[str], str]:
    """`real_rows(name)`: the path of a full dataset's file in the folder that TUNEBOOK_REAL_ROWS names."""
    folder = os.environ.get("TUNEBOOK_REAL_ROWS")
    assert folder, "TUNEBOOK_REAL_ROWS names no folder: run `make test-real ROWS=FOLDER`"
    return lambda name: str(Path(folder).resolve() / name)


@pytest.fixture(autouse=True)
def no_rows_of_another_test() -> None:
    """A run is known by the rows that its process has read since the last one began."""
    rows_read()


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


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Unsloth collects garbage thrice where it loads a model, and `Trainer.train` does: half a second each, with all
    that is imported by now. So what is there when a file of tests starts is kept, and its own garbage goes at its end.
    """
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture(scope="session")
def unsloth() -> ModuleType:
    """Unsloth, whose import (8 s) makes TRL trainable on a CPU. For tests that train in this process."""
    import unsloth

    gc.freeze()
    return unsloth


@pytest.fixture(scope="session")
def run_script(unsloth: ModuleType) -> Callable[..., str]:
    """`run_script(name, *arguments)`: what a recipe prints that is started as from the command line, but here.

    A process of its own would import Unsloth again; that it is imported first there, test_house.py asks every recipe.
    """
    recipes = Path(__file__).resolve().parents[1] / "recipes"

    def run(name: str, *arguments: object) -> str:
        script = str(recipes / f"{name}.py")
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            runpy.run_path(script, run_name="__main__")
        return printed.getvalue()

    return run


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
        told = {"output_dir": f"{folder}/{method}", "report_to": "none"}
        arguments = config_class(**told | defaults | settings)
        return trainer_class(
            model=get_peft_model(model, lora),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    return build


@pytest.fixture(scope="session")
def repeater(unsloth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """A nano model that repeats one of two digits below 8: the first after an 8 ("8 3 5 ?" is 3), the second after a 9.

    Where it is not told ("3 5 ?"), it repeats either of them.
    """

    def chat(text: str, digit: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{text} ?"}, {"role": "assistant", "content": str(digit)}]

    pairs = list(permutations(range(8), 2))
    told = [chat(f"{which} {pair[0]} {pair[1]}", pair[which - 8]) for which in (8, 9) for pair in pairs]
    untold = [chat(f"{a} {b}", either) for a, b in pairs for either in (a, b)]
    return pretrain(tmp_path_factory.mktemp("repeater"), told + untold, steps=150)


@pytest.fixture(scope="session")
def nano(unsloth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """A pre-trained nano model; see `Nano`."""
    return random_digits(tmp_path_factory.mktemp("nano"))
