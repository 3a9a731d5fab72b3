"""Prompt and parser agree, and the prompt stays cheap."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from data.prompts import (
    NUMBERED_HEADING,
    PASSAGES_HEADING,
    RAG_SYSTEM_PROMPT,
    SYSTEM_PROMPT,
    add_passages,
    leave_out_long,
    math_messages,
    rag_messages,
    token_length,
)
from rewards import tags


def test_the_system_prompt_shows_the_format_that_the_parser_accepts():
    assert tags.FORMAT_EXAMPLE in SYSTEM_PROMPT
    filled = tags.FORMAT_EXAMPLE.replace("...", "2 + 2 = 4", 1).replace("...", "4", 1)
    parsed = tags.parse(filled)
    assert parsed is not None
    assert (parsed.reasoning, parsed.answer) == ("2 + 2 = 4", "4")


def test_echoing_the_prompt_is_no_answer():
    assert tags.parse(SYSTEM_PROMPT) is None
    assert tags.parse(RAG_SYSTEM_PROMPT) is None


def test_questions_on_evidence_show_the_format_and_perhaps_the_day():
    assert rag_messages("Who rules?") == [
        {"role": "system", "content": RAG_SYSTEM_PROMPT},
        {"role": "user", "content": "Who rules?"},
    ]
    assert rag_messages("Who rules?", "March 4, 2024")[1]["content"] == "Today is March 4, 2024.\nWho rules?"
    assert tags.FORMAT_EXAMPLE in RAG_SYSTEM_PROMPT


def test_messages_hold_the_question_unchanged():
    question = "How many <answer> tags?\n  Ünï – 1,080"
    system, user = math_messages(question)
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user == {"role": "user", "content": question}


def test_the_system_prompt_stays_short():
    assert len(SYSTEM_PROMPT.split()) <= 20  # 36 tokens in SmolLM2's vocabulary, mostly the tags
    assert len(RAG_SYSTEM_PROMPT.split()) <= 24  # 40 tokens


def test_importing_the_data_room_loads_nothing_heavy():
    heavy = "'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'pandas', 'numpy', 'bm25s'"
    ours = (
        "data.gsm8k, data.gsm8k_sample, data.factscore, data.earnings_calls, data.evolkit, data.hotpotqa, data.musique"
    )
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


# Numbered passages and the labels that go with them


def labelled(*rows: dict[str, bool]):
    """Rows whose passages, best first, are the keys, each with its label."""
    from datasets import Dataset, Features, List, Value

    prompt = [{"role": "user", "content": "Who is it?"}]
    features = Features(
        prompt=List({"role": Value("string"), "content": Value("string")}),
        passages=List(Value("string")),
        supporting=List(Value("bool")),
    )
    columns = [{"prompt": prompt, "passages": list(row), "supporting": list(row.values())} for row in rows]
    return Dataset.from_list(columns, features=features)


def test_numbers_name_the_passages_in_the_order_shown():
    texts = [f"Passage {letter} speaks." for letter in "abcdefgh"]
    (row,) = add_passages(rows_with(texts), budget=99, count_tokens=count_words, numbered=True)
    assert sorted(row["passages"]) == texts
    assert row["passages"] != texts
    evidence = "\n\n".join(f"[{number}] {passage}" for number, passage in enumerate(row["passages"], start=1))
    assert row["prompt"][0]["content"] == f"{NUMBERED_HEADING}\n\n{evidence}\n\nWho is it?"


def test_the_budget_pays_for_the_numbers():
    rows = rows_with([f"w{number} w w" for number in range(20)])
    room = count_words(NUMBERED_HEADING) + 4 * 6
    for budget in (room - 1, room):
        (row,) = add_passages(rows, budget=budget, count_tokens=count_words, numbered=True)
        assert len(row["passages"]) == (6 if budget == room else 5)
        assert count_words(row["prompt"][0]["content"].removesuffix("Who is it?")) <= budget


@pytest.mark.parametrize("numbered", [False, True])
def test_labels_stay_with_their_passages(numbered, capsys):
    rows = [{f"{letter} of {row} speaks": letter in "bd" for letter in "abcd"} for row in range(50)]
    heading = NUMBERED_HEADING if numbered else PASSAGES_HEADING
    budget = count_words(heading) + (4 + numbered) * 3  # all but the last passage of each row
    dataset = add_passages(labelled(*rows), budget=budget, count_tokens=count_words, numbered=numbered)
    for row in dataset:
        assert row["supporting"] == [passage.startswith("b") for passage in row["passages"]]
        assert len(row["passages"]) == 3
        assert row["supporting_lost"] == 1
    assert {tuple(own) for own in dataset["supporting"]} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    survived = "supporting passages: 50 of 100 are shown (50.0 %); 0 of 50 rows have all of theirs (0.0 %)\n"
    assert survived in capsys.readouterr().out


def test_survival_counts_labelled_rows_only(capsys):
    rows = [{"a b": True, "c d": False}, {"e f": True, "g h i j k l m": True}, {"n o": False}, {}]
    dataset = add_passages(labelled(*rows), budget=10, count_tokens=count_words)
    assert dataset["supporting_lost"] == [0, 1, 0, 0]
    survived = "supporting passages: 2 of 3 are shown (66.7 %); 1 of 2 rows have all of theirs (50.0 %)\n"
    assert survived in capsys.readouterr().out


def test_without_a_label_nothing_is_said_of_survival(capsys):
    add_passages(labelled({"a b": False}, {"c d": False}), budget=9, count_tokens=count_words)
    assert "supporting" not in capsys.readouterr().out


def test_rows_that_all_lack_passages_are_asked_closed_book(capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": rag_messages("Who?"), "passages": [], "supporting": []}] * 2)
    shown = add_passages(rows, budget=10, count_tokens=len, numbered=True)
    assert shown["prompt"] == rows["prompt"] and shown["supporting_lost"] == [0, 0]
    assert "2 of 2 prompts have none" in capsys.readouterr().out


class Words:
    """Reads each word as a token, and writes two around an answer that is to come."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * (len(text.split()) + add_special_tokens)}

    def apply_chat_template(
        self, chats: list[list[dict[str, str]]], *, add_generation_prompt: bool, return_dict: bool
    ) -> list[list[int]]:
        assert add_generation_prompt and not return_dict
        return [[0] * (2 + sum(len(message["content"].split()) for message in chat)) for chat in chats]


@pytest.mark.parametrize(("as_text", "template"), [(False, 2), (True, 0)])
def test_prompts_that_are_too_long_are_left_out_and_counted(
    as_text: bool, template: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset

    texts = ["one two three", "one", "one two three four"]
    rows = Dataset.from_list(
        [{"prompt": text if as_text else [{"role": "user", "content": text}], "answer": text} for text in texts]
    )
    assert leave_out_long(rows, Words(), 4 + template, flag="--max-length").to_list() == rows.to_list()
    assert capsys.readouterr().out == ""
    kept = leave_out_long(rows, Words(), 3 + template, flag="--max-length")
    assert kept["answer"] == texts[:2]
    assert capsys.readouterr().out == f"1 of 3 prompts are left out: longer than {3 + template} tokens\n"
    with pytest.raises(ValueError, match=rf"no prompt has at most {template} tokens: raise --max-length"):
        leave_out_long(rows, Words(), template, flag="--max-length")
