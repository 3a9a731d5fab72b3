"""What every recipe needs and no reader came to see. Importing it switches off usage pings.

A variable is set only where the environment lacks it: a user's own value stays. The libraries read them when
they are imported, so this package comes first, as in every recipe.
"""

import os

NO_PINGS = {
    # Unsloth counts environments by downloading a README from the hub at every model load. Any value counts.
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # TRL's trainers report class, model type and device through huggingface_hub when they are built.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # DeepEval sends PostHog an event for every metric it runs.
    "DEEPEVAL_TELEMETRY_OPT_OUT": "1",
    # Evidently's service and collector; any value counts. huggingface_hub and vLLM obey it too.
    "DO_NOT_TRACK": "1",
    # vLLM reports hardware and model type when an engine starts.
    "VLLM_NO_USAGE_STATS": "1",
}

for _name, _value in NO_PINGS.items():
    os.environ.setdefault(_name, _value)
