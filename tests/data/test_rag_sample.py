"""The shipped worlds: reproducible, answerable from the gold passages alone, and without a shortcut to the answer.

Answers are worked out here from the sentences, read back by the wordings: these tests judge what stands there, not
what the generator meant.
"""

import doctest
import json
import random
import re
import runpy
from collections import Counter

import pytest

from data import hotpotqa, musique, rag_sample
from data.rag_sample import HOPS, HOTPOTQA_KINDS, NAMES, PARAGRAPHS, RELATIONS, ROWS, SAME, WHICH
from data.source import SAMPLES

FILES = {
    name: [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text("utf-8").splitlines()]
    for name in ("hotpotqa_train", "hotpotqa_test", "musique_train", "musique_test")
}
HOTPOTQA = FILES["hotpotqa_train"] + FILES["hotpotqa_test"]
MUSIQUE = FILES["musique_train"] + FILES["musique_test"]

TOLD = {
    name: re.escape(one.told).replace(r"\{s\}", "(.+)").replace(r"\{o\}", "(.+)") for name, one in RELATIONS.items()
}
ASKED = [
    (name, re.compile(re.escape(asked).replace(r"\{s\}", "(.+)")))
    for name, one in RELATIONS.items()
    for asked in one.asked
]
PHRASES = {
    name: re.compile(re.escape(one.phrase).replace(r"\{s\}", "(.+)")) for name, one in RELATIONS.items() if one.phrase
}


def facts(title: str, sentences: list[str]) -> dict[str, str]:
    """What a paragraph tells about its subject: the object under each relation."""
    found = {}
    for place, sentence in enumerate(sentences):
        fits = [(name, match) for name, told in TOLD.items() if (match := re.fullmatch(told, sentence.strip()))]
        assert len(fits) == 1, sentence
        name, match = fits[0]
        again = title.split()[-1] if RELATIONS[name].subject == "person" else "It"
        assert match[1] == (again if place else title)
        found[name] = match[2]
    return found


def path_of(question: str) -> tuple[str, list[str]]:
    """Where a composed question starts, and the relations from there on."""
    fits = [(name, match[1]) for name, asked in ASKED if (match := asked.fullmatch(question))]
    assert len(fits) == 1, question
    relations, rest = [fits[0][0]], fits[0][1]
    while nested := [(name, match[1]) for name, phrase in PHRASES.items() if (match := phrase.fullmatch(rest))]:
        assert len(nested) == 1, question
        relations.append(nested[0][0])
        rest = nested[0][1]
    return rest, relations[::-1]


def follow(question: str, told: dict[str, dict[str, str]]) -> tuple[str, list[str]]:
    """The answer to a composed question, and the titles passed on the way."""
    at, relations = path_of(question)
    titles = []
    for relation in relations:
        titles.append(at)
        at = told[at][relation]
    return at, titles


def compare(question: str, told: dict[str, dict[str, str]]) -> tuple[str, list[str]]:
    """The answer to a comparison, and the two titles it is about."""
    for relation, asked, pick in [*WHICH, *((*same, None) for same in SAME)]:
        pattern = re.escape(asked).replace(r"\{a\}", "(.+)").replace(r"\{b\}", "(.+)")
        if match := re.fullmatch(pattern, question):
            pair = [match[1], match[2]]
            if pick is None:
                return ("yes" if len({told[one][relation] for one in pair}) == 1 else "no"), pair
            return pick(pair, key=lambda one: int(told[one][relation].split()[0])), pair
    raise AssertionError(question)


def worlds(row: dict) -> tuple[dict[str, dict[str, str]], set[str]]:
    """What each paragraph of a raw row tells, by its title, and the titles of the gold ones."""
    if "context" in row:
        context = row["context"]
        told = {title: facts(title, own) for title, own in zip(context["title"], context["sentences"], strict=True)}
        return told, set(row["supporting_facts"]["title"])
    pieces = {own["title"]: re.split(r"(?<=\.) (?=[A-Z])", own["paragraph_text"]) for own in row["paragraphs"]}
    told = {title: facts(title, sentences) for title, sentences in pieces.items()}
    return told, {own["title"] for own in row["paragraphs"] if own["is_supporting"]}


def test_doctests():
    results = doctest.testmod(rag_sample)
    assert results.failed == 0
    assert results.attempted >= 1


def test_sizes_and_no_question_twice():
    assert {name: len(rows) for name, rows in FILES.items()} == {
        f"{name}_{split}": count for name in ("hotpotqa", "musique") for split, count in ROWS.items()
    }
    for rows in (HOTPOTQA, MUSIQUE):
        assert len({row["question"] for row in rows}) == len(rows)
        assert len({row["id"] for row in rows}) == len(rows)


def test_the_gold_passages_give_the_answer_and_all_of_them_are_needed():
    for row in HOTPOTQA + MUSIQUE:
        told, gold = worlds(row)
        comparison = row.get("type") == "comparison"
        solve = compare if comparison else follow
        answer, titles = solve(row["question"], {title: own for title, own in told.items() if title in gold})
        assert answer == row["answer"], row["question"]
        assert set(titles) == gold, row["question"]
        assert comparison or answer not in row["question"], row["question"]


def test_questions_are_of_every_kind():
    for split, count in ROWS.items():
        kinds = Counter(row["type"] for row in FILES[f"hotpotqa_{split}"])
        hops = Counter(len(row["question_decomposition"]) for row in FILES[f"musique_{split}"])
        shares = (
            (kinds["bridge"], 3 / 4),
            (kinds["comparison"], 1 / 4),
            (hops[2], 1 / 2),
            (hops[3], 3 / 8),
            (hops[4], 1 / 8),
        )
        assert kinds.keys() == {"bridge", "comparison"} and hops.keys() == {2, 3, 4}
        # A question that comes a second time is not taken, whatever its turn.
        assert all(abs(found - share * count) <= 2 for found, share in shares)
    assert len(HOPS) == len(HOTPOTQA_KINDS) == 8
    composed = [row["question"] for row in HOTPOTQA if row["type"] == "bridge"]
    for questions in (composed, [row["question"] for row in MUSIQUE]):
        last = Counter(path_of(question)[1][-1] for question in questions)
        assert last.keys() == rag_sample.paths(2).keys()
        assert max(last.values()) / len(questions) < 0.08


def test_no_answer_is_the_usual_one():
    for rows in FILES.values():
        counts = Counter(row["answer"] for row in rows)
        said = counts.pop("yes", 0), counts.pop("no", 0)
        assert sum(said) <= len(rows) / 8
        assert max(counts.values()) / len(rows) < 0.05
    sames = Counter(row["answer"] for row in HOTPOTQA if row["answer"] in ("yes", "no"))
    assert 0.3 < sames["yes"] / sames.total() < 0.7
    which = [row for row in HOTPOTQA if ", " in row["question"]]
    first = sum(f", {row['answer']} or" in row["question"] for row in which)
    assert 0.3 < first / len(which) < 0.7


def test_the_place_of_the_gold_passages_tells_nothing():
    for rows in (HOTPOTQA, MUSIQUE):
        places: dict[int, list[bool]] = {}
        for told, gold in map(worlds, rows):
            for place, title in enumerate(told):
                places.setdefault(place, []).append(title in gold)
        share = sum(sum(own) for own in places.values()) / sum(len(own) for own in places.values())
        assert all(0.7 * share < sum(own) / len(own) < 1.3 * share for own in places.values())
    sentences = Counter(place for row in HOTPOTQA for place in row["supporting_facts"]["sent_id"])
    assert sentences[1] / sentences.total() > 0.15


def test_rivals_speak_of_the_same_things():
    """Of each gold passage, what counts in it is also told of something else, so that no type gives it away."""
    for row in HOTPOTQA + MUSIQUE:
        told, gold = worlds(row)
        _, relations = path_of(row["question"]) if row.get("type") != "comparison" else (None, [])
        if relations:
            rivals = Counter(relation for title, own in told.items() if title not in gold for relation in own)
            assert rivals[relations[-1]] >= 1, row["question"]


def test_the_ranking_finds_the_first_step_and_often_misses_the_last():
    for module in (hotpotqa, musique):
        rows = module.load("train", source="sample")
        found = [supporting[: sum(supporting)] for supporting in rows["supporting"]]
        assert sum(own[0] for own in found) / len(found) > 0.85
        assert 0.05 < sum(all(own) for own in found) / len(found) < 0.6


def test_texts_are_short_and_tidy():
    for row in HOTPOTQA + MUSIQUE:
        assert len(row["question"].split()) <= 20
        assert row["question"][0].isupper() and row["question"].endswith("?")
        assert len(row["answer"].split()) <= 3
        told, _ = worlds(row)
        size = PARAGRAPHS["musique"] if "paragraphs" in row else PARAGRAPHS["hotpotqa"]
        assert len(told) in ((size,) if "paragraphs" in row else (size - 1, size))
    text = "".join((SAMPLES / f"{name}.jsonl").read_text("utf-8") for name in FILES)
    assert not re.search(r"[{}]\w+[{}]|  |<|>|\b(\w+) \1\b", text)


def test_musique_rows_explain_themselves():
    for row in MUSIQUE:
        titles = [own["title"] for own in row["paragraphs"]]
        assert [own["idx"] for own in row["paragraphs"]] == list(range(len(titles)))
        _, way = follow(row["question"], worlds(row)[0])
        steps = row["question_decomposition"]
        assert [titles[step["paragraph_support_idx"]] for step in steps] == way
        assert steps[-1]["answer"] == row["answer"]
        assert [step["answer"] for step in steps[:-1]] == way[1:]
        assert all(f"#{number}" in step["question"] for number, step in enumerate(steps) if number)
    assert 0.4 < sum(bool(row["answer_aliases"]) for row in MUSIQUE) / len(MUSIQUE) < 0.9


def test_a_name_stands_for_one_thing_and_its_likeness_for_another():
    world = rag_sample.World(random.Random(0))
    first = world.name("person")
    others = [world.name("person", like=first) for _ in range(30)]
    assert len({first, *others}) == 31
    assert sum(bool(set(first.split()) & set(other.split())) for other in others) >= 8
    assert all(name in {written.format(a, b) for a in firsts for b in seconds}
               for written, firsts, seconds in [NAMES["person"]] for name in others)  # fmt: skip


@pytest.mark.parametrize("module", [hotpotqa, musique])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_samples_are_read_without_a_word(module, split, capsys):
    rows = module.load(split, source="sample")
    assert len(rows) == ROWS[split]
    assert capsys.readouterr().out == ""
    assert all(any(supporting) and not all(supporting) for supporting in rows["supporting"])


def test_the_command_writes_the_four_files_as_they_are_shipped_and_leaves_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr("data.source.SAMPLES", tmp_path / "samples")
    runpy.run_path(rag_sample.__file__, run_name="__main__")
    written = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert written == {f"{name}.jsonl": (SAMPLES / f"{name}.jsonl").read_bytes() for name in FILES}
