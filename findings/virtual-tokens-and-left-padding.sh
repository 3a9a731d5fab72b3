#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.17.0: with prompt tuning, what a model thinks of a prompt depends on how much padding
# stands before it. The virtual tokens are put before the padding of a row that is padded on the left, and the position
# ids that a caller passes to make up for it are dropped ("Position ids are not supported for parameter efficient
# tuning. Ignoring position ids."), so the distance between virtual tokens and prompt is the longest row's.
# Seen 2026-11-30, float32, a random Llama of two layers: next-token logits of one prompt, alone and with 24 tokens of
# padding on its left, differ by more than 0.01; those of the same model without virtual tokens, given position ids, by
# less than 1e-4; and those with virtual tokens too, once position ids counted from the mask reach the model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.17.0 peft==0.21.2
"$work/env/bin/python" -W ignore - <<'PY'
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
base = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.3)).eval()
prompt = torch.randint(1, 64, (1, 8))
padded = torch.cat([torch.zeros(1, 24, dtype=torch.long), prompt], dim=1)
alone, mask = torch.ones_like(prompt), (padded != 0).long()


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def difference(model: torch.nn.Module) -> float:
    with torch.inference_mode():
        one = model(input_ids=prompt, attention_mask=alone, position_ids=positions(alone)).logits[0, -1]
        other = model(input_ids=padded, attention_mask=mask, position_ids=positions(mask)).logits[0, -1]
    return (one - other).abs().max().item()


plain = difference(base)
tuned = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
dropped = difference(tuned)


def count(module, args, kwargs):
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = positions(kwargs["attention_mask"].long())
    return args, kwargs


base.register_forward_pre_hook(count, with_kwargs=True)
counted = difference(tuned)
print(f"without virtual tokens {plain:.1e}, with them {dropped:.1e}, with counted positions {counted:.1e}")
assert plain < 1e-4 and counted < 1e-4 and dropped > 1e-2, "the behaviour has changed: see the head of this file"
PY
echo "as described: PEFT 0.21.2, transformers 5.17.0"
