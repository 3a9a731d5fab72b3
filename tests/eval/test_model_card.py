"""The code on a model card does what the card says."""

import re
from pathlib import Path

import pytest

from eval.report import write_model_card

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


def test_a_reward_model_is_loaded_as_its_card_says_and_gives_the_rewards_it_gave(tmp_path: Path, tiny: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)  # a reward of 0.18: one that chance puts near 0 is further off in bfloat16 than its 2 %
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    trunk = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    trunk.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(trunk, LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False)).eval()
    inputs = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_tensors="pt")
    given = model(**inputs).logits[0, 0].item()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    results = {
        **{"recipe": "toy_reward", "model": "tiny", "base_model": str(tiny), "date": "2026-01-31", "command": "python"},
        **{"correct": "preference_accuracy", "format": None, "stages": [], "comparisons": [], "n": 0},
        **{"versions": {}, "git_commit": None, "args": {}, "licence": None, "complete": True, "beside": []},
        **{"steps": {"made": 4, "planned": 4}, "reference": None, "win_rate": None, "judge": None},
        "training": dict.fromkeys(("trainable_parameters", "parameters", "adapter_bytes", "tokens_per_second")),
    }
    write_model_card(tmp_path / "README.md", results)
    load, score = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    found: dict[str, object] = {}
    exec(load.replace("path/to/this/folder", str(tmp_path)).replace("path/to/the/base/model", str(tiny)), found)
    assert isinstance(found["model"], PeftModel)
    question, answer = (message["content"] for message in MESSAGES)
    exec(score.replace('"..."', repr(question), 1).replace('"..."', repr(answer), 1), found)
    assert found["reward"] == pytest.approx(given, abs=2e-2 * abs(given))  # the card loads the tiny model's bfloat16
