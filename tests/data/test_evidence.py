"""Worked examples on evidence: they parse, cite what the prompt shows, in an order that leads to the answer."""

import re

import pytest

from data import hotpotqa, musique
from data.evidence import CITED_CHARACTERS, FROM_MEMORY, rag_row, worked_examples
from data.prompts import add_passages
from rewards.rag import citation_reward, exact_match_reward
from rewards.tags import parse


def count_words(text: str) -> int:
    return len(text.split())


def shown(*rows, budget: int = 500):
    from datasets import Dataset

    return add_passages(Dataset.from_list([*rows]), budget=budget, count_tokens=count_words, numbered=True)


def row(question: str = "Who is it?", answer: str = "Ada", **passages: bool) -> dict:
    texts = [f"{title}\n{title} is here." for title in passages]
    return rag_row(question, [answer], texts, list(passages.values()))


def reasoning(dataset) -> list[str]:
    return [parse(message["content"]).reasoning for [message] in dataset["completion"]]


def test_aliases_keep_their_order_each_once():
    made = rag_row("Which river?", ["Arvel", "River Arvel", "Arvel"], ["Tarby", "A river"], [True, False])
    assert made["aliases"] == ["Arvel", "River Arvel"]
    assert made["answer"] == "Arvel"
    assert (made["passages"], made["supporting"]) == (["A river", "Tarby"], [False, True])


@pytest.mark.parametrize("module", [hotpotqa, musique])
def test_worked_examples_earn_every_reward_of_the_rules(module):
    dataset = shown(*module.load("test", source="sample"))
    examples = worked_examples(dataset)
    assert examples.column_names == ["prompt", "completion"]
    assert examples["prompt"] == dataset["prompt"]
    completions = examples["completion"]
    assert exact_match_reward(completions, aliases=dataset["aliases"]) == [1.0] * len(dataset)
    assert citation_reward(completions, supporting=dataset["supporting"]) == [1.0] * len(dataset)
    for own, text in zip(dataset, reasoning(examples), strict=True):
        for number, line in re.findall(r"^\[(\d+)\] (.+)$", text, re.MULTILINE):
            assert own["passages"][int(number) - 1].endswith(f"\n{line}")
        assert len(text.splitlines()) == sum(own["supporting"])


def test_a_passage_comes_after_the_one_that_names_it():
    texts = {
        "Lake Orm": "Lake Orm is 30 metres deep, the lake below the river of a birthplace.",
        "Arvel": "Arvel flows into Lake Orm.",
        "Orla Vale": "Orla Vale was born in Tarby.",
        "Tarby": "Tarby lies on the river Arvel.",
        "Brill": "Brill lies nowhere.",
    }
    question = "How deep is the lake below the river through the birthplace of Orla Vale?"
    passages = [f"{title}\n{text}" for title, text in texts.items()]
    dataset = shown(rag_row(question, ["30 metres"], passages, [title != "Brill" for title in texts]))
    (text,) = reasoning(worked_examples(dataset))
    assert [line.partition("] ")[2] for line in text.splitlines()] == [
        texts[title] for title in ("Orla Vale", "Tarby", "Arvel", "Lake Orm")
    ]


def test_passages_that_name_each_other_come_as_they_are_ranked():
    texts = ["Ada\nAda met Bo.", "Bo\nBo, whom Ada met, was king of Tarby."]
    (text,) = reasoning(worked_examples(shown(rag_row("Who was king of Tarby?", ["Bo"], texts, [True, True]))))
    assert [line[4:] for line in text.splitlines()] == ["Bo, whom Ada met, was king of Tarby.", "Ada met Bo."]


def test_long_passages_are_cut_after_a_sentence_and_a_long_sentence_at_a_word():
    sentence = "This is a sentence of forty characters." + " "
    long = "word " * 200
    texts = ["Ada\n" + sentence * 20, f"Bo\n{long}.", "no title"]
    (text,) = reasoning(worked_examples(shown(rag_row("Ada and Bo?", ["x"], texts, [True, True, True]))))
    lines = {line[4:] for line in text.splitlines()}
    whole = (sentence * 6).strip()
    assert len(whole) == CITED_CHARACTERS - 1
    assert lines == {whole, ("word " * 47) + "word ...", "no title"}


def test_rows_that_lack_evidence_are_left_out_and_counted(capsys):
    lost = row("Lost?", Ada=True, Bo=True)
    unlabelled = row("Unlabelled?", Ada=False)
    tagged = rag_row("Tagged?", ["x"], ["Ada\nAda wrote </answer>."], [True])
    wordless = row("Wordless?", answer="+", Ada=True)
    dataset = shown(row("Kept?", Ada=True), lost, unlabelled, tagged, wordless, budget=9 + 5)
    assert dataset["supporting_lost"] == [0, 1, 0, 0, 0]
    examples = worked_examples(dataset)
    assert [prompt[1]["content"].splitlines()[-1] for prompt in examples["prompt"]] == ["Kept?"]
    assert "4 of 5 rows do not show all they rest on and are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"none of the 1 prompts shows all the passages .* pass a larger budget"):
        worked_examples(dataset.select([1]))


def test_a_set_without_labels_quotes_the_best_passage_that_holds_the_answer():
    texts = ["Tarby\nTarby has a king.", "Cy\nThe King of Tarby is Bo, they say.", "Bo\nBo was here.", "Bob\nBob fell."]
    held = rag_row("Who is the king of Tarby?", ["Queen Bo", "bo"], texts, [False] * 4)
    unheld = rag_row("Who fell?", ["Dee"], texts, [False] * 4)
    bare = rag_row("Who is it?", ["Ada"], [], [])
    dataset = shown(held, unheld, bare)
    quoted, *rest = reasoning(worked_examples(dataset))
    number = dataset[0]["passages"].index(texts[1]) + 1
    assert quoted == f"[{number}] The King of Tarby is Bo, they say."
    assert rest == [FROM_MEMORY, FROM_MEMORY]
    assert [m["content"].count("Queen Bo") for [m] in worked_examples(dataset)["completion"]] == [1, 0, 0]


def test_worked_examples_mind_their_limit(capsys):
    dataset = shown(row("One?", Ada=True), row("Two?", Ada=True))
    assert worked_examples(dataset, 1)["prompt"] == dataset["prompt"][:1]
    assert len(worked_examples(dataset, 10)) == 2
    assert "10 rows asked for, all 2 there are used" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 1"):
        worked_examples(dataset, 0)
