"""The word problems that ship with the repository: our own, in GSM8K's raw schema, from a seeded generator.

    python -m data.gsm8k_sample    # rewrites data/samples/gsm8k_{train,test}.jsonl, byte for byte the same

The first row of the test file:

    {"question": "Ana had 7 marbles and got 3 more for her birthday. How many marbles does Ana have now?",
     "answer": "Ana had 7 marbles and got 3 more.\\nNow she has 7 + 3 = <<7+3=10>>10 marbles.\\n#### 10"}

Every problem adds or subtracts once, with small numbers: what a model of 135M parameters solves now and then after a
dozen steps of worked examples, so that a reward has something to tell apart. The two steps are to say what is known
and to work it out. `LARGEST` and the stories are the knobs for difficulty. The splits share no (story, numbers) pair,
so remembering a training problem under another name solves no test problem. No answer is a number of its own
question, so copying one never scores.
"""

import json
import operator
import os
import random
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

SEED = 20
SMALLEST, LARGEST = 2, 20  # of every number and result; from 2 upwards, so that every noun is a plural
TRAIN_ROWS, TEST_ROWS = 800, 200
SAMPLES = Path(__file__).parent / "samples"

OPERATIONS = {"+": operator.add, "-": operator.sub}
GIRLS = ("Mia", "Ana", "Lucy", "Nora", "Ruth", "Ella", "Priya", "Grace", "Zoe", "Rosa", "Hana", "Clara")
BOYS = ("Ben", "Sam", "Leo", "Tom", "Omar", "Max", "Ravi", "Jack", "Luis", "Adam", "Noah", "Peter")


class Wording(NamedTuple):
    """One way to tell a story. `{step}` is the whole calculation, such as "12 + 5 = <<12+5=17>>17"."""

    nouns: tuple[str, ...]
    question: str
    known: str
    answer: str


# The sign between the two numbers of a story, a and b in the order in which they are told.
STORIES = {
    "two finds": "+",
    "gain": "+",
    "growing": "+",
    "so many more": "+",
    "gift or loss": "-",
    "leaving": "-",
    "still needed": "-",
    "so many fewer": "-",
}

WORDINGS: dict[str, tuple[Wording, ...]] = {
    "two finds": (
        Wording(
            ("shells", "pebbles", "crabs", "feathers"),
            "{name} walked along the beach and found {a} {noun} before lunch and {b} after lunch. How many "
            "{noun} did {she} find that day?",
            "{name} found {a} {noun} and then {b} more.",
            "In all {she} found {step} {noun}.",
        ),
        Wording(
            ("pictures", "maps", "castles", "dragons"),
            "On a rainy weekend {name} drew {a} {noun} on Saturday and {b} on Sunday. How many {noun} did {she}"
            " draw altogether?",
            "{name} drew {a} {noun} and then {b} more.",
            "In all {she} drew {step} {noun}.",
        ),
        Wording(
            ("apples", "pears", "plums", "peaches"),
            "At the orchard {name} picked {a} {noun} from the first tree and {b} from the second. How many "
            "{noun} did {she} pick?",
            "{name} picked {a} {noun} and then {b} more.",
            "In all {she} picked {step} {noun}.",
        ),
    ),
    "gain": (
        Wording(
            ("stickers", "marbles", "toy cars", "comic books"),
            "{name} had {a} {noun} and got {b} more for {her} birthday. How many {noun} does {name} have now?",
            "{name} had {a} {noun} and got {b} more.",
            "Now {she} has {step} {noun}.",
        ),
        Wording(
            ("ducks", "geese", "swans", "herons"),
            "Early in the morning {name} saw {a} {noun} on the pond, and at noon {b} more arrived. How many "
            "{noun} were there then?",
            "There were {a} {noun} and {b} more arrived.",
            "Then there were {step} {noun}.",
        ),
        Wording(
            ("loaves", "muffins", "bagels", "pies"),
            "There were {a} {noun} in the bakery window when {name} brought out {b} more. How many {noun} were "
            "in the window then?",
            "There were {a} {noun} and {name} brought {b} more.",
            "Then there were {step} {noun}.",
        ),
    ),
    "growing": (
        Wording(
            ("sister", "brother", "cousin"),
            "{name} turned {a} this spring, and {her} {noun} is {b} years older. How old is {her} {noun}?",
            "{name} is {a} and {her} {noun} is {b} years older.",
            "{Her} {noun} is {step} years old.",
        ),
        Wording(
            ("oak", "maple", "chestnut", "willow"),
            "The {noun} behind the school is {a} years old, and the one by the gate is {b} years older. How old"
            " is the one by the gate?",
            "One is {a} years old and the other {b} years older.",
            "The one by the gate is {step} years old.",
        ),
        Wording(
            ("sunflower", "bean plant", "corn stalk", "tomato plant"),
            "{name}'s {noun} was {a} inches tall in May, and it grew {b} inches in June. How many inches tall "
            "was it then?",
            "It was {a} inches tall and grew {b} inches.",
            "Then it was {step} inches tall.",
        ),
    ),
    "so many more": (
        Wording(
            ("pine cones", "acorns", "leaves", "stones"),
            "On a hike {name} picked up {a} {noun}, and {friend} picked up {b} more than {name}. How many "
            "{noun} did {friend} pick up?",
            "{name} picked up {a} {noun} and {friend} {b} more.",
            "{friend} picked up {step} {noun}.",
        ),
        Wording(
            ("points", "goals"),
            "{name} scored {a} {noun} in the first game of the season and {b} more than that in the second. How"
            " many {noun} did {she} score in the second game?",
            "{name} scored {a} {noun} and then {b} more than that.",
            "In the second game {she} scored {step} {noun}.",
        ),
        Wording(
            ("buttons", "beads", "coins", "keys"),
            "The red tin on the shelf holds {a} {noun}, and the blue tin holds {b} more than the red one. How "
            "many {noun} are there in the blue tin?",
            "The red tin holds {a} {noun} and the blue tin {b} more.",
            "The blue tin holds {step} {noun}.",
        ),
    ),
    "gift or loss": (
        Wording(
            ("stamps", "postcards", "photos", "trading cards"),
            "{name} had {a} {noun} in an album and gave {b} of them to {friend}. How many {noun} does {name} "
            "have left?",
            "{name} had {a} {noun} and gave away {b}.",
            "Now {she} has {step} {noun}.",
        ),
        Wording(
            ("cookies", "walnuts", "raisins", "jelly beans"),
            "{name} filled a jar with {a} {noun} on Sunday and ate {b} of them on Monday. How many {noun} were "
            "still in the jar?",
            "The jar held {a} {noun} and {name} ate {b}.",
            "The jar still held {step} {noun}.",
        ),
        Wording(
            ("pencils", "crayons", "markers", "erasers"),
            "{name} took {a} new {noun} to school and lost {b} of them on the way home. How many {noun} does "
            "{she} have left?",
            "{name} had {a} {noun} and lost {b}.",
            "Now {she} has {step} {noun}.",
        ),
    ),
    "leaving": (
        Wording(
            ("passengers", "people", "tourists", "children"),
            "A bus left the station with {a} {noun} on board, and {b} got off at the first stop. How many "
            "{noun} stayed on the bus?",
            "The bus had {a} {noun} and {b} got off.",
            "The bus still had {step} {noun}.",
        ),
        Wording(
            ("novels", "cookbooks", "magazines", "songbooks"),
            "A library shelf held {a} {noun} on Monday, and since then readers have borrowed {b} of them. How "
            "many {noun} are still on the shelf?",
            "The shelf held {a} {noun} and readers took {b}.",
            "The shelf still holds {step} {noun}.",
        ),
        Wording(
            ("hens", "goats", "rabbits", "lambs"),
            "{name} kept {a} {noun} in the old barn and sold {b} of them at the fair. How many {noun} does "
            "{she} have now?",
            "{name} had {a} {noun} and sold {b}.",
            "Now {she} has {step} {noun}.",
        ),
    ),
    "still needed": (
        Wording(
            ("bottle caps", "stamps", "coins", "cards"),
            "{name} hopes to collect {a} {noun} and has found {b} of them so far. How many {noun} does {she} "
            "still need?",
            "{name} wants {a} {noun} and has {b}.",
            "{She} still needs {step} {noun}.",
        ),
        Wording(
            ("chapters", "pages", "stories", "poems"),
            "The book on {name}'s desk has {a} {noun}, and {she} has read {b} of them. How many {noun} does "
            "{she} still have to read?",
            "The book has {a} {noun} and {name} read {b}.",
            "{She} still has to read {step} {noun}.",
        ),
        Wording(
            ("invitations", "cards", "letters"),
            "{name} has to write {a} {noun} before the wedding and wrote {b} of them last night. How many "
            "{noun} does {she} still have to write?",
            "{name} has to write {a} {noun} and wrote {b}.",
            "{She} still has to write {step} {noun}.",
        ),
    ),
    "so many fewer": (
        Wording(
            ("fish", "trout", "crabs"),
            "At the lake {name} caught {a} {noun}, while {friend} caught {b} fewer than {name}. How many {noun}"
            " did {friend} catch?",
            "{name} caught {a} {noun} and {friend} {b} fewer.",
            "{friend} caught {step} {noun}.",
        ),
        Wording(
            ("laps", "miles"),
            "{name} ran {a} {noun} last week. This week {she} was tired and ran {b} {noun} fewer. How many "
            "{noun} did {she} run this week?",
            "{name} ran {a} {noun} and then {b} fewer.",
            "This week {she} ran {step} {noun}.",
        ),
        Wording(
            ("desks", "windows", "plants", "posters"),
            "The art room at school has {a} {noun}. The music room has {b} fewer than the art room. How many "
            "{noun} does the music room have?",
            "The art room has {a} {noun} and the music room {b} fewer.",
            "The music room has {step} {noun}.",
        ),
    ),
}


def solve(sign: str, a: int, b: int) -> tuple[str, int] | None:
    """The calculation as GSM8K writes it, and the answer; None when these numbers do not suit a story.

    >>> solve("-", 17, 4)
    ('17 - 4 = <<17-4=13>>13', 13)
    """
    result = OPERATIONS[sign](a, b)
    if not SMALLEST <= result <= LARGEST or result in (a, b):
        return None
    return f"{a} {sign} {b} = <<{a}{sign}{b}={result}>>{result}", result


def tell(name: str, a: int, b: int, rng: random.Random) -> dict[str, str]:
    """One raw GSM8K row: the named story on suitable numbers; wording, noun and people come from `rng`."""
    wording = rng.choice(WORDINGS[name])
    solved = solve(STORIES[name], a, b)
    assert solved is not None, f"{a} and {b} do not suit the story {name!r}"
    step, answer = solved
    person, friend = rng.sample(GIRLS + BOYS, 2)
    she, her = ("she", "her") if person in GIRLS else ("he", "his")
    slots = {
        "name": person,
        "friend": friend,
        "she": she,
        "She": she.title(),
        "her": her,
        "Her": her.title(),
        "noun": rng.choice(wording.nouns),
        "a": a,
        "b": b,
        "step": step,
    }
    question, *lines = (text.format_map(slots) for text in (wording.question, wording.known, wording.answer))
    return {"question": question, "answer": "\n".join([*lines, f"#### {answer}"])}


def build() -> dict[str, list[dict[str, str]]]:
    """The raw rows of both splits: every story equally often, in an order that mixes the stories."""
    rng = random.Random(SEED)
    n_train, n_test = TRAIN_ROWS // len(STORIES), TEST_ROWS // len(STORIES)
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for name, sign in STORIES.items():
        choices = product(range(SMALLEST, LARGEST + 1), repeat=2)
        suitable = [(a, b) for a, b in choices if solve(sign, a, b)]
        if len(suitable) <= n_test:
            raise ValueError(f"{len(suitable)} number pairs suit {name!r}, {n_test} go to test: raise LARGEST")
        rng.shuffle(suitable)
        test += [tell(name, a, b, rng) for a, b in suitable[:n_test]]
        told: dict[str, dict[str, str]] = {}  # by question: numbers that come round again are told anew
        for a, b in cycle(suitable[n_test:]):
            row = tell(name, a, b, rng)
            told[row["question"]] = row
            if len(told) == n_train:
                break
        train += told.values()
    rng.shuffle(train)
    rng.shuffle(test)
    return {"train": train, "test": test}


def render(rows: list[dict[str, str]]) -> str:
    """JSON Lines, one row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Rewrites both files; a reader sees the old file or the new one, never half of one."""
    SAMPLES.mkdir(exist_ok=True)
    for split, rows in build().items():
        path = SAMPLES / f"gsm8k_{split}.jsonl"
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(render(rows), encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
        print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
