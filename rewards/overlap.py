"""Word overlap with a reference answer: BLEU by sacrebleu, ROUGE-L by rouge-score.

For free text with many right answers, where overlap is a weak witness: a good answer in other words scores low, and a
fluent one with a wrong fact high. Figures beside a held-out loss, then, and nothing to train on.
"""

from collections.abc import Sequence

from rewards.contract import Completion
from rewards.tags import completion_text


def bleu_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: object) -> list[float | None]:
    """BLEU-4 of each completion on its own, with exponential smoothing (Chen & Cherry 2014). Range [0, 1].

    1.0: the reference, word for word. 0.0: no word of it. None: the reference is empty. The mean over sentences is not
    corpus BLEU, which pools counts and has no paired interval.

    >>> bleu_reward(["The cat sat on the mat."], answer=["The cat sat on the mat."])
    [1.0]
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    return [
        min(1.0, bleu.sentence_score(completion_text(completion), [reference]).score / 100)
        if reference.strip()
        else None
        for completion, reference in zip(completions, answer, strict=True)
    ]


def rouge_l_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: object) -> list[float | None]:
    """ROUGE-L: F1 of the longest common subsequence of words, stemmed (Lin 2004). Range [0, 1].

    1.0: the same words in the same order. 0.0: none in common. None: the reference has no word.

    >>> rouge_l_reward(["the cat sat"], answer=["The cats sat."])
    [1.0]
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(reference, completion_text(completion))["rougeL"].fmeasure) if reference.strip() else None
        for completion, reference in zip(completions, answer, strict=True)
    ]
