#!/usr/bin/env bash
# transformers 5.17.0: an explicit GenerationConfig passed to `generate` does not keep the model's own out. Every field
# that is None in the passed one is taken from `model.generation_config`: a repetition penalty that a published
# generation_config.json holds changes what is written, although the caller named all that he wanted.
# Seen 2026-11-30: with repetition_penalty 5.0 in the model's config and GenerationConfig(do_sample=False,
# max_new_tokens=12) passed, the text differs from that of a model whose config is empty; with repetition_penalty=1.0
# passed it is the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.17.0
"$work/env/bin/python" - <<'PY'
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.5)).eval()
prompt = torch.tensor([[3, 4, 5, 3, 4, 5]])


def write(of_model: GenerationConfig, **passed: object) -> list[int]:
    model.generation_config = of_model
    config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0, **passed)
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, generation_config=config)[0, prompt.shape[1] :].tolist()


plain = write(GenerationConfig())
leaked = write(GenerationConfig(repetition_penalty=5.0))
named = write(GenerationConfig(repetition_penalty=5.0), repetition_penalty=1.0)
print("the model's config is empty:           ", plain)
print("it holds a penalty, none is passed:    ", leaked)
print("it holds a penalty, 1.0 is passed:     ", named)
assert plain == named and plain != leaked, "the behaviour has changed: see the head of this file"
PY
echo "as described: transformers 5.17.0"
