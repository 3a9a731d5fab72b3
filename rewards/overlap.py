"""Word overlap with a reference answer: BLEU by sacrebleu, ROUGE-L by rouge-score; and what a word is, in any script.

On ASCII both give what the libraries give. Beyond it, these would find no word (ROUGE's are of a-z and 0-9) or one word
a sentence (BLEU's end at spaces and at ASCII's punctuation): `words` and `_apart` stand in.

For free text with many right answers, where overlap is a weak witness: a good answer in other words scores low, and a
fluent one with a wrong fact high. Figures beside a held-out loss, then, and nothing to train on.
"""

import re
import unicodedata
from collections.abc import Sequence

from rewards.contract import Completion
from rewards.tags import completion_text

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han: scripts without spaces between words, where a character has to do.
_UNSPACED = re.compile(
    "([\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff])"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, digits and accents, or single characters of `_UNSPACED`.

    >>> words("Apollo 8, naïve 東京 हिन्दी!")
    ['apollo', '8', 'naïve', '東', '京', 'हिन्दी']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(character if unicodedata.category(character)[0] in "LMN" else " " for character in text)
    return _UNSPACED.sub(r" \1 ", kept).split()


def _apart(text: str) -> str:
    """`text` with spaces around what sacrebleu's tokeniser does not know for a word or a sign of punctuation."""
    if text.isascii():
        return text
    signs = "".join(
        f" {character} " if not character.isascii() and unicodedata.category(character)[0] in "PS" else character
        for character in unicodedata.normalize("NFC", text)
    )
    return _UNSPACED.sub(r" \1 ", signs)


def bleu_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: object) -> list[float | None]:
    """BLEU-4 of each completion on its own, with exponential smoothing (Chen & Cherry 2014). Range [0, 1], or None.

    1.0: the reference, word for word. 0.0: no word of it. None: the reference is empty. The mean over sentences is not
    corpus BLEU, which pools counts and has no paired interval.

    >>> bleu_reward(["The cat sat on the mat."], answer=["The cat sat on the mat."])
    [1.0]
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    return [
        min(1.0, bleu.sentence_score(_apart(completion_text(completion)), [_apart(reference)]).score / 100)
        if reference.strip()
        else None
        for completion, reference in zip(completions, answer, strict=True)
    ]


def rouge_l_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: object) -> list[float | None]:
    """ROUGE-L: F1 of the longest common subsequence of words, stemmed (Lin 2004). Range [0, 1], or None.

    1.0: the same words in the same order. 0.0: none in common. None: the reference has no word.

    >>> rouge_l_reward(["the cat sat"], answer=["The cats sat."])
    [1.0]
    """
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    stem = PorterStemmer().stem

    class Words(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return [stem(word) if len(word) > 3 else word for word in words(text)]  # the original stems no shorter ones

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return [
        float(scorer.score(reference, completion_text(completion))["rougeL"].fmeasure) if words(reference) else None
        for completion, reference in zip(completions, answer, strict=True)
    ]
