"""Run by test_adapters_learn.py in a process of its own: reloads saved adapters as a user does, and prints logits.

python tests/reload_driver.py '{"lora": "FOLDER", "full": "FOLDER", ...}'
"""

import json
import sys
from typing import Any

import torch
from unsloth import FastLanguageModel  # before peft and transformers, which it patches

from peft import AutoPeftModelForCausalLM  # isort: skip
from transformers import AutoModelForCausalLM, AutoTokenizer  # isort: skip


def reload(adapter: str, folder: str) -> Any:
    if adapter == "qlora":
        return FastLanguageModel.from_pretrained(folder, load_in_4bit=True, max_seq_length=64)[0]
    loader = AutoModelForCausalLM if adapter == "full" else AutoPeftModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.bfloat16)


def main() -> None:
    logits = {}
    for adapter, folder in json.loads(sys.argv[1]).items():
        model, tokenizer = reload(adapter, folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "3 5 ?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        model.eval()
        with torch.inference_mode():
            logits[adapter] = model(**ids).logits[0, -1].float().tolist()
    print(json.dumps(logits))


if __name__ == "__main__":
    main()
