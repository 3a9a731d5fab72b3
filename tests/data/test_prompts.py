"""Prompt and parser agree, and the prompt stays cheap."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from data.prompts import PASSAGES_HEADING, SYSTEM_PROMPT, add_passages, math_messages, token_length
from rewards import tags


def test_the_system_prompt_shows_the_format_that_the_parser_accepts():
    assert tags.FORMAT_EXAMPLE in SYSTEM_PROMPT
    filled = tags.FORMAT_EXAMPLE.replace("...", "2 + 2 = 4", 1).replace("...", "4", 1)
    parsed = tags.parse(filled)
    assert parsed is not None
    assert (parsed.reasoning, parsed.answer) == ("2 + 2 = 4", "4")


def test_echoing_the_prompt_is_no_answer():
    assert tags.parse(SYSTEM_PROMPT) is None


def test_messages_hold_the_question_unchanged():
    question = "How many <answer> tags?\n  Ünï – 1,080"
    system, user = math_messages(question)
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user == {"role": "user", "content": question}


def test_the_system_prompt_stays_short():
    assert len(SYSTEM_PROMPT.split()) <= 20  # 36 tokens in SmolLM2's vocabulary, mostly the tags


def test_importing_the_data_room_loads_nothing_heavy():
    heavy = "'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'pandas', 'numpy'"
    ours = "data.gsm8k, data.gsm8k_sample, data.factscore, data.earnings_calls, data.evolkit"
    code = f"import sys, {ours}; print([m for m in ({heavy}) if m in sys.modules])"
    repository = Path(__file__).resolve().parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=repository).strip() == b"[]"


# Passages


def count_words(text: str) -> int:
    return len(text.split())


def rows_with(*passages: list[str], prompt: list[dict[str, str]] | None = None):
    from datasets import Dataset

    prompt = prompt or [{"role": "user", "content": "Who is it?"}]
    return Dataset.from_list([{"prompt": prompt, "answer": "Ada", "passages": own} for own in passages])


def test_passages_stand_before_the_question_and_nothing_else_changes(capsys):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}]
    (row,) = add_passages(rows_with(["Ada sang."], prompt=prompt), budget=20, count_tokens=count_words)
    content = f"{PASSAGES_HEADING}\n\nAda sang.\n\nWho is it?"
    assert row == {
        "prompt": [prompt[0], {"role": "user", "content": content}],
        "answer": "Ada",
        "passages": ["Ada sang."],
    }
    assert capsys.readouterr().out == "passages: 1 of 1 fit into 20 tokens a prompt, 0.0 % of their tokens are cut\n"


def test_the_budget_is_kept_best_first_and_what_is_cut_is_printed(capsys):
    best, too_long, third, fourth = "a b c d", "e f g h i j", "k l", "m n"
    dataset = add_passages(
        rows_with([best, too_long, third, fourth], [too_long, too_long]),
        budget=count_words(PASSAGES_HEADING) + 7,
        count_tokens=count_words,
    )
    assert [set(shown) for shown in dataset["passages"]] == [{best, third}, {too_long}]
    for [message] in dataset["prompt"]:
        evidence = message["content"].removesuffix("Who is it?")
        assert count_words(evidence) <= count_words(PASSAGES_HEADING) + 7
    # 4 + 2 + 6 of 14 + 12 words
    line = "passages: 3 of 6 fit into 10 tokens a prompt, 53.8 % of their tokens are cut\n"
    assert capsys.readouterr().out == line


def test_the_budget_holds_for_a_vocabulary_that_shortens_blank_lines_at_the_end():
    """Byte-level BPE, as in GPT-2 and SmolLM2: "\\n\\n" is one token at the end of a text, and two before a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    bpe.train_from_iterator(["Ada sang.\n\n", "Bo swam.\n\n"] * 50, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])

    def tokenizer(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": bpe.encode(text, add_special_tokens=add_special_tokens).ids}

    count_tokens = partial(token_length, tokenizer)
    assert count_tokens("\n\n") == 1
    assert count_tokens("\n\nAda") == 2 + count_tokens("Ada")
    passages = [f"Ada sang. Bo swam {number} times." for number in range(20)]
    for budget in (60, 100, 140):
        (row,) = add_passages(rows_with(passages), budget=budget, count_tokens=count_tokens)
        spent = count_tokens(row["prompt"][0]["content"]) - count_tokens("Who is it?")
        assert budget - 30 < spent <= budget


def test_prompts_without_a_passage_stay_as_they_are_and_are_counted(capsys):
    dataset = add_passages(rows_with(["a b"], ["c d e f"], []), budget=5, count_tokens=count_words)
    assert dataset["passages"] == [["a b"], [], []]
    assert [prompt[0]["content"] for prompt in dataset["prompt"][1:]] == ["Who is it?", "Who is it?"]
    assert "66.7 % of their tokens are cut; 2 of 3 prompts have none" in capsys.readouterr().out


def test_the_place_of_a_passage_does_not_tell_its_rank():
    rows = [[f"{letter} is passage {row}" for letter in "abcde"] for row in range(200)]
    first, again = (add_passages(rows_with(*rows), budget=99, count_tokens=count_words)["passages"] for _ in range(2))
    assert first == again
    places = [shown.index(ranked[0]) for shown, ranked in zip(first, rows, strict=True)]
    assert all(20 <= places.count(place) <= 60 for place in range(5))  # 40 expected, standard deviation 5.7


@pytest.mark.parametrize("budget", [-1, 0, 3, 5])
def test_a_budget_too_small_for_any_passage_is_refused(budget):
    with pytest.raises(ValueError, match=rf"a budget of {budget} tokens holds none of the 2 passages: pass a larger"):
        add_passages(rows_with(["a b c"], ["d e f"]), budget=budget, count_tokens=count_words)
