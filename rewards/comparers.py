"""Who compares the answers of two models, and who rewards one: what `--judge` and `--reward` of a recipe name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards import pairrm, reward_model
from rewards.contract import Prefer, Reward


def by_name(name: str) -> Prefer | None:
    """The judge for `eval.winrate` of this name; None for "none".

    PairRM has seen UltraFeedback and WebGPT in its own training (rewards/pairrm.py): of models trained on these, let a
    reward model judge too.

    Args:
        name: "none"; "pairrm", fetched from the hub where it is not yet; a folder with PairRM; or the adapter folder of
            a reward model.

    Raises:
        ValueError: PairRM cannot be fetched, or the folder holds neither.
    """
    if name == "none":
        return None
    return pairrm.prefer(_source(name)) if _is_pairrm(name) else reward_model.prefer(name)


def reward_by_name(name: str) -> Callable[[Any], Reward]:
    """A function that makes the reward of this name for a policy, a PeftModel over a causal language model.

    What `name` stands for is fetched or checked now, before a recipe loads its policy, and loaded by the function. A
    reward model on the policy's own base model then shares its weights (`reward_model.reward`).

    Args:
        name: as of `by_name`, but for "none".

    Raises:
        ValueError: as `by_name`; the function too, where weights are not what they should be.
    """
    if _is_pairrm(name):
        folder = str(pairrm.fetch(_source(name)))
        return lambda policy: pairrm.reward(pairrm.load(folder))
    reward_model.adapter_config(name)
    return lambda policy: reward_model.reward(name, policy)


def _is_pairrm(name: str) -> bool:
    if name == "pairrm":
        return True
    file = Path(name).expanduser() / "config.json"
    return file.is_file() and "source_prefix_id" in json.loads(file.read_text(encoding="utf-8"))


def _source(name: str) -> str:
    return pairrm.SOURCE if name == "pairrm" else name
