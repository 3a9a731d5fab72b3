"""Who compares the answers of two models: what `--judge` of a preference recipe names."""

from eval.winrate import Prefer
from rewards import pairrm, reward_model


def by_name(name: str) -> Prefer | None:
    """The judge for `eval.winrate` of this name; None for "none".

    PairRM has seen UltraFeedback and WebGPT in its own training (rewards/pairrm.py): of models trained on these, let a
    reward model judge too.

    Args:
        name: "none"; "pairrm", fetched from the hub where it is not yet; or the adapter folder of a reward model.

    Raises:
        ValueError: PairRM cannot be fetched, or the folder holds no reward model.
    """
    if name == "none":
        return None
    return pairrm.prefer() if name == "pairrm" else reward_model.prefer(name)
