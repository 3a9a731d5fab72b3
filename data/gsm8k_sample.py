"""The word problems that ship with the repository: our own, in GSM8K's raw schema, from a seeded generator.

    python -m data.gsm8k_sample    # rewrites data/samples/gsm8k_{train,test}.jsonl, byte for byte the same

The first row of the test file:

    {"question": "Mia's tomato plant was 7 inches tall in April. It grew 3 inches in May and 9 inches in June.
                  How many inches tall was it at the end of June?",
     "answer": "In May it was 7 + 3 = <<7+3=10>>10.\\nIn June it was 10 + 9 = <<10+9=19>>19 inches.\\n#### 19"}

Every problem adds or subtracts twice, with two or three small numbers: what a model of 135M parameters solves now
and then after a few dozen worked examples. `LARGEST` and the stories are the knobs for difficulty. The splits
share no (story, numbers) pair, so remembering a training problem under another name solves no test problem. No
answer is a number of its own question, so copying one never scores.
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


class Story(NamedTuple):
    """Two steps on the numbers a, b, c; x is the result of the first."""

    first: str
    second: str

    @property
    def letters(self) -> list[str]:
        """The letters the story needs: a and b, or a, b and c."""
        return sorted(set(self.first + self.second) & set("abc"))


class Wording(NamedTuple):
    """One way to tell a story. `{first}` and `{second}` are whole steps, such as "12 + 5 = <<12+5=17>>17"."""

    nouns: tuple[str, ...]
    question: str
    first: str
    second: str


STORIES = {
    "three finds": Story("a + b", "x + c"),
    "gain, then lose": Story("a + b", "x - c"),
    "lose twice": Story("a - b", "x - c"),
    "lose, then gain": Story("a - b", "x + c"),
    "so many more, together": Story("a + b", "x + a"),
    "so many fewer, together": Story("a - b", "x + a"),
    "still needed": Story("a + b", "c - x"),
    "growing": Story("a + b", "x + c"),
}

WORDINGS: dict[str, tuple[Wording, ...]] = {
    "three finds": (
        Wording(
            ("shells", "pebbles", "crabs", "feathers"),
            "{name} walked along the beach and found {a} {noun} before lunch, {b} after lunch and {c} in "
            "the evening. How many {noun} did {she} find that day?",
            "{She} first found {first}.",
            "In all {she} found {second} {noun}.",
        ),
        Wording(
            ("pictures", "maps", "castles", "dragons"),
            "On a rainy weekend {name} drew {a} {noun} on Friday, {b} on Saturday and {c} on Sunday. How "
            "many {noun} did {she} draw altogether?",
            "By Saturday {she} drew {first}.",
            "In all {she} drew {second} {noun}.",
        ),
        Wording(
            ("apples", "pears", "plums", "peaches"),
            "At the orchard {name} picked {a} {noun} from the first tree, {b} from the second and {c} from "
            "the third. How many {noun} did {she} pick?",
            "From two trees {she} picked {first}.",
            "In all {she} picked {second} {noun}.",
        ),
    ),
    "gain, then lose": (
        Wording(
            ("stickers", "marbles", "toy cars", "comic books"),
            "{name} had {a} {noun} and got {b} more for {her} birthday. Later {she} gave {c} of them to "
            "{friend}. How many {noun} does {name} have now?",
            "{name} had {first}.",
            "Now {she} has {second} {noun}.",
        ),
        Wording(
            ("ducks", "geese", "swans", "herons"),
            "Early in the morning {name} saw {a} {noun} on the pond. At noon {b} more arrived, and by "
            "evening {c} had flown away. How many {noun} were still there?",
            "At noon there were {first}.",
            "Later there were {second} {noun}.",
        ),
        Wording(
            ("loaves", "muffins", "bagels", "pies"),
            "There were {a} {noun} in the bakery window when {name} brought out {b} more. Customers bought "
            "{c} of them before noon. How many {noun} were left?",
            "At first there were {first}.",
            "Then there were {second} {noun}.",
        ),
    ),
    "lose twice": (
        Wording(
            ("cookies", "walnuts", "raisins", "jelly beans"),
            "{name} filled a jar with {a} {noun} on Sunday. {She} ate {b} of them on Monday and {c} on "
            "Tuesday. How many {noun} were still in the jar?",
            "On Monday {first} were left.",
            "Then {second} {noun} were left.",
        ),
        Wording(
            ("passengers", "people", "tourists", "children"),
            "A bus left the station with {a} {noun} on board. At the first stop {b} got off, and {c} got "
            "off at the second. How many {noun} stayed on the bus?",
            "After one stop {first} were left.",
            "Then {second} {noun} were left.",
        ),
        Wording(
            ("pencils", "crayons", "markers", "erasers"),
            "{name} took {a} new {noun} to school. {She} lent {b} of them to {friend} and lost {c} on the "
            "way home. How many {noun} does {she} have left?",
            "{name} still had {first}.",
            "Now {she} has {second} {noun}.",
        ),
    ),
    "lose, then gain": (
        Wording(
            ("stamps", "postcards", "photos", "trading cards"),
            "{name} had {a} {noun} in an album and gave {b} of them to {friend}. A week later {c} new ones "
            "came in the mail. How many {noun} does {name} have now?",
            "{name} still had {first}.",
            "Now {she} has {second} {noun}.",
        ),
        Wording(
            ("novels", "cookbooks", "magazines", "songbooks"),
            "A library shelf held {a} {noun} on Monday. Readers borrowed {b} of them, and then {name} put "
            "{c} others back. How many {noun} are on the shelf now?",
            "Readers left {first}.",
            "Now there are {second} {noun}.",
        ),
        Wording(
            ("hens", "goats", "rabbits", "lambs"),
            "{name} kept {a} {noun} in the old barn. At the fair {she} sold {b} of them and bought {c} "
            "others. How many {noun} does {she} have now?",
            "{name} still had {first}.",
            "Now {she} has {second} {noun}.",
        ),
    ),
    "so many more, together": (
        Wording(
            ("pine cones", "acorns", "leaves", "stones"),
            "On a hike {name} picked up {a} {noun}, and {friend} picked up {b} more than {name}. How many "
            "{noun} did the two of them pick up together?",
            "{friend} picked up {first}.",
            "Together they have {second} {noun}.",
        ),
        Wording(
            ("points", "goals"),
            "{name} scored {a} {noun} in the first game of the season and {b} more than that in the second. "
            "How many {noun} did {she} score in both games?",
            "In the second {she} scored {first}.",
            "In both {she} scored {second} {noun}.",
        ),
        Wording(
            ("buttons", "beads", "coins", "keys"),
            "The red tin on the shelf holds {a} {noun}, and the blue tin holds {b} more than the red one. "
            "How many {noun} are there in the two tins?",
            "The blue tin holds {first}.",
            "Together they hold {second} {noun}.",
        ),
    ),
    "so many fewer, together": (
        Wording(
            ("fish", "trout", "crabs"),
            "At the lake {name} caught {a} {noun}, while {friend} caught {b} fewer than {name}. How many "
            "{noun} did the two friends catch in all?",
            "{friend} caught {first}.",
            "Together they caught {second} {noun}.",
        ),
        Wording(
            ("laps", "miles"),
            "{name} ran {a} {noun} last week. This week {she} was tired and ran {b} {noun} fewer. How many "
            "{noun} did {she} run in the two weeks?",
            "This week {she} ran {first}.",
            "In all {she} ran {second} {noun}.",
        ),
        Wording(
            ("desks", "windows", "plants", "posters"),
            "The art room at school has {a} {noun}. The music room has {b} fewer than the art room. How "
            "many {noun} do the two rooms have together?",
            "The music room has {first}.",
            "Together they have {second} {noun}.",
        ),
    ),
    "still needed": (
        Wording(
            ("bottle caps", "stamps", "coins", "cards"),
            "{name} hopes to collect {c} {noun}. {She} had {a} at the start of the week and has found {b} "
            "more since then. How many {noun} does {she} still need?",
            "So far {she} has {first}.",
            "{She} still needs {second} {noun}.",
        ),
        Wording(
            ("chapters", "pages", "stories", "poems"),
            "The book on {name}'s desk has {c} {noun}. {She} read {a} of them yesterday and {b} today. How "
            "many {noun} does {she} still have to read?",
            "So far {she} read {first}.",
            "{She} still has {second} {noun}.",
        ),
        Wording(
            ("invitations", "cards", "letters"),
            "{name} has to write {c} {noun} before the wedding. {She} wrote {a} last night and {b} this "
            "morning. How many {noun} does {she} still have to write?",
            "So far {she} wrote {first}.",
            "{She} still has {second} {noun}.",
        ),
    ),
    "growing": (
        Wording(
            ("sister", "brother", "cousin"),
            "{name} turned {a} this spring, and {her} {noun} is {b} years older. How old will {her} {noun} "
            "be {c} years from now?",
            "{Her} {noun} is {first}.",
            "Later {her} {noun} will be {second}.",
        ),
        Wording(
            ("oak", "maple", "chestnut", "willow"),
            "The {noun} behind the school is {a} years old, and the one by the gate is {b} years older. How "
            "old will the one by the gate be in {c} years?",
            "The one by the gate is {first}.",
            "Later it will be {second}.",
        ),
        Wording(
            ("sunflower", "bean plant", "corn stalk", "tomato plant"),
            "{name}'s {noun} was {a} inches tall in April. It grew {b} inches in May and {c} inches in "
            "June. How many inches tall was it at the end of June?",
            "In May it was {first}.",
            "In June it was {second} inches.",
        ),
    ),
}


def solve(story: Story, numbers: tuple[int, ...]) -> tuple[str, str, int] | None:
    """Both steps as GSM8K writes them, and the answer; None when these numbers do not suit the story.

    >>> solve(STORIES["gain, then lose"], (12, 5, 4))
    ('12 + 5 = <<12+5=17>>17', '17 - 4 = <<17-4=13>>13', 13)
    """
    values = dict(zip(story.letters, numbers, strict=True))
    steps = []
    for step in (story.first, story.second):
        letter, sign, other = step.split()
        left, right = values[letter], values[other]
        result = OPERATIONS[sign](left, right)
        if not SMALLEST <= result <= LARGEST:
            return None
        values["x"] = result
        steps.append(f"{left} {sign} {right} = <<{left}{sign}{right}={result}>>{result}")
    return None if values["x"] in numbers else (steps[0], steps[1], values["x"])


def tell(name: str, numbers: tuple[int, ...], rng: random.Random) -> dict[str, str]:
    """One raw GSM8K row: the named story on suitable numbers; wording, noun and people come from `rng`."""
    story, wording = STORIES[name], rng.choice(WORDINGS[name])
    solved = solve(story, numbers)
    assert solved is not None, f"{numbers} do not suit the story {name!r}"
    first, second, answer = solved
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
        "first": first,
        "second": second,
        **dict(zip(story.letters, numbers, strict=True)),
    }
    question, *lines = (text.format_map(slots) for text in (wording.question, wording.first, wording.second))
    return {"question": question, "answer": "\n".join([*lines, f"#### {answer}"])}


def build() -> dict[str, list[dict[str, str]]]:
    """The raw rows of both splits: every story equally often, in an order that mixes the stories."""
    rng = random.Random(SEED)
    n_train, n_test = TRAIN_ROWS // len(STORIES), TEST_ROWS // len(STORIES)
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for name, story in STORIES.items():
        choices = product(range(SMALLEST, LARGEST + 1), repeat=len(story.letters))
        suitable = [numbers for numbers in choices if solve(story, numbers)]
        if len(suitable) <= n_test:
            raise ValueError(f"{len(suitable)} number sets suit {name!r}, {n_test} go to test: raise LARGEST")
        rng.shuffle(suitable)
        test += [tell(name, numbers, rng) for numbers in suitable[:n_test]]
        told: dict[str, dict[str, str]] = {}  # by question: numbers that come round again are told anew
        for numbers in cycle(suitable[n_test:]):
            row = tell(name, numbers, rng)
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
