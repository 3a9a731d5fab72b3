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

import operator
import random
from itertools import cycle, product
from typing import NamedTuple

from data.source import Row, write_samples

SEED = 20
SMALLEST, LARGEST = 2, 20  # of every number and result; from 2 upwards, so that every noun is a plural
TRAIN_ROWS, TEST_ROWS = 800, 200

OPERATIONS = {"+": operator.add, "-": operator.sub}
GIRLS = ("Mia", "Ana", "Lucy", "Nora", "Ruth", "Ella", "Priya", "Grace", "Zoe", "Rosa", "Hana", "Clara")
BOYS = ("Ben", "Sam", "Leo", "Tom", "Omar", "Max", "Ravi", "Jack", "Luis", "Adam", "Noah", "Peter")

# Eight stories, each with the sign between its two numbers, a and b in the order in which they are told, and three
# wordings: nouns, the question, and its solution, where {step} is the calculation, such as "12 + 5 = <<12+5=17>>17".
_TOLD = """
two finds (+)
- shells, pebbles, crabs, feathers
  {name} walked along the beach and found {a} {noun} before lunch and {b} after lunch.
  How many {noun} did {she} find that day?
  {name} found {a} {noun} and then {b} more. In all {she} found {step} {noun}.
- pictures, maps, castles, dragons
  On a rainy weekend {name} drew {a} {noun} on Saturday and {b} on Sunday.
  How many {noun} did {she} draw altogether?
  {name} drew {a} {noun} and then {b} more. In all {she} drew {step} {noun}.
- apples, pears, plums, peaches
  At the orchard {name} picked {a} {noun} from the first tree and {b} from the second.
  How many {noun} did {she} pick?
  {name} picked {a} {noun} and then {b} more. In all {she} picked {step} {noun}.

gain (+)
- stickers, marbles, toy cars, comic books
  {name} had {a} {noun} and got {b} more for {her} birthday.
  How many {noun} does {name} have now?
  {name} had {a} {noun} and got {b} more. Now {she} has {step} {noun}.
- ducks, geese, swans, herons
  Early in the morning {name} saw {a} {noun} on the pond, and at noon {b} more arrived.
  How many {noun} were there then?
  There were {a} {noun} and {b} more arrived. Then there were {step} {noun}.
- loaves, muffins, bagels, pies
  There were {a} {noun} in the bakery window when {name} brought out {b} more.
  How many {noun} were in the window then?
  There were {a} {noun} and {name} brought {b} more. Then there were {step} {noun}.

growing (+)
- sister, brother, cousin
  {name} turned {a} this spring, and {her} {noun} is {b} years older.
  How old is {her} {noun}?
  {name} is {a} and {her} {noun} is {b} years older. {Her} {noun} is {step} years old.
- oak, maple, chestnut, willow
  The {noun} behind the school is {a} years old, and the one by the gate is {b} years older.
  How old is the one by the gate?
  One is {a} years old and the other {b} years older. The one by the gate is {step} years old.
- sunflower, bean plant, corn stalk, tomato plant
  {name}'s {noun} was {a} inches tall in May, and it grew {b} inches in June.
  How many inches tall was it then?
  It was {a} inches tall and grew {b} inches. Then it was {step} inches tall.

so many more (+)
- pine cones, acorns, leaves, stones
  On a hike {name} picked up {a} {noun}, and {friend} picked up {b} more than {name}.
  How many {noun} did {friend} pick up?
  {name} picked up {a} {noun} and {friend} {b} more. {friend} picked up {step} {noun}.
- points, goals
  {name} scored {a} {noun} in the first game of the season and {b} more than that in the second.
  How many {noun} did {she} score in the second game?
  {name} scored {a} {noun} and then {b} more than that. In the second game {she} scored {step} {noun}.
- buttons, beads, coins, keys
  The red tin on the shelf holds {a} {noun}, and the blue tin holds {b} more than the red one.
  How many {noun} are there in the blue tin?
  The red tin holds {a} {noun} and the blue tin {b} more. The blue tin holds {step} {noun}.

gift or loss (-)
- stamps, postcards, photos, trading cards
  {name} had {a} {noun} in an album and gave {b} of them to {friend}.
  How many {noun} does {name} have left?
  {name} had {a} {noun} and gave away {b}. Now {she} has {step} {noun}.
- cookies, walnuts, raisins, jelly beans
  {name} filled a jar with {a} {noun} on Sunday and ate {b} of them on Monday.
  How many {noun} were still in the jar?
  The jar held {a} {noun} and {name} ate {b}. The jar still held {step} {noun}.
- pencils, crayons, markers, erasers
  {name} took {a} new {noun} to school and lost {b} of them on the way home.
  How many {noun} does {she} have left?
  {name} had {a} {noun} and lost {b}. Now {she} has {step} {noun}.

leaving (-)
- passengers, people, tourists, children
  A bus left the station with {a} {noun} on board, and {b} got off at the first stop.
  How many {noun} stayed on the bus?
  The bus had {a} {noun} and {b} got off. The bus still had {step} {noun}.
- novels, cookbooks, magazines, songbooks
  A library shelf held {a} {noun} on Monday, and since then readers have borrowed {b} of them.
  How many {noun} are still on the shelf?
  The shelf held {a} {noun} and readers took {b}. The shelf still holds {step} {noun}.
- hens, goats, rabbits, lambs
  {name} kept {a} {noun} in the old barn and sold {b} of them at the fair.
  How many {noun} does {she} have now?
  {name} had {a} {noun} and sold {b}. Now {she} has {step} {noun}.

still needed (-)
- bottle caps, stamps, coins, cards
  {name} hopes to collect {a} {noun} and has found {b} of them so far.
  How many {noun} does {she} still need?
  {name} wants {a} {noun} and has {b}. {She} still needs {step} {noun}.
- chapters, pages, stories, poems
  The book on {name}'s desk has {a} {noun}, and {she} has read {b} of them.
  How many {noun} does {she} still have to read?
  The book has {a} {noun} and {name} read {b}. {She} still has to read {step} {noun}.
- invitations, cards, letters
  {name} has to write {a} {noun} before the wedding and wrote {b} of them last night.
  How many {noun} does {she} still have to write?
  {name} has to write {a} {noun} and wrote {b}. {She} still has to write {step} {noun}.

so many fewer (-)
- fish, trout, crabs
  At the lake {name} caught {a} {noun}, while {friend} caught {b} fewer than {name}.
  How many {noun} did {friend} catch?
  {name} caught {a} {noun} and {friend} {b} fewer. {friend} caught {step} {noun}.
- laps, miles
  {name} ran {a} {noun} last week. This week {she} was tired and ran {b} {noun} fewer.
  How many {noun} did {she} run this week?
  {name} ran {a} {noun} and then {b} fewer. This week {she} ran {step} {noun}.
- desks, windows, plants, posters
  The art room at school has {a} {noun}. The music room has {b} fewer than the art room.
  How many {noun} does the music room have?
  The art room has {a} {noun} and the music room {b} fewer. The music room has {step} {noun}.
"""


class Wording(NamedTuple):
    """One way to tell a story."""

    nouns: list[str]
    question: str
    solution: str
    """A sentence on each line."""


class Story(NamedTuple):
    sign: str
    wordings: list[Wording]


def _stories(told: str) -> dict[str, Story]:
    stories = {}
    for story in told.strip().split("\n\n"):
        title, *lines = (line.lstrip("- ") for line in story.splitlines())
        wordings = []
        for nouns, happened, asked, solution in zip(lines[::4], lines[1::4], lines[2::4], lines[3::4], strict=True):
            wordings.append(Wording(nouns.split(", "), f"{happened} {asked}", solution.replace(". ", ".\n")))
        name, sign = title.removesuffix(")").split(" (")
        stories[name] = Story(sign, wordings)
    return stories


STORIES = _stories(_TOLD)


def solve(sign: str, a: int, b: int) -> tuple[str, int] | None:
    """The calculation as GSM8K writes it, and the answer; None when these numbers do not suit a story.

    >>> solve("-", 17, 4)
    ('17 - 4 = <<17-4=13>>13', 13)
    """
    result = OPERATIONS[sign](a, b)
    if not SMALLEST <= result <= LARGEST or result in (a, b):
        return None
    return f"{a} {sign} {b} = <<{a}{sign}{b}={result}>>{result}", result


def tell(name: str, a: int, b: int, rng: random.Random) -> Row:
    """One raw GSM8K row: the named story on suitable numbers; wording, noun and people come from `rng`."""
    sign, wordings = STORIES[name]
    wording = rng.choice(wordings)
    solved = solve(sign, a, b)
    assert solved is not None, f"{a} and {b} do not suit the story {name!r}"
    step, answer = solved
    person, friend = rng.sample(GIRLS + BOYS, 2)
    she, her = ("she", "her") if person in GIRLS else ("he", "his")
    slots = {"name": person, "friend": friend, "she": she, "She": she.title(), "her": her, "Her": her.title()}
    slots |= {"noun": rng.choice(wording.nouns), "a": str(a), "b": str(b), "step": step}
    return {
        "question": wording.question.format_map(slots),
        "answer": f"{wording.solution.format_map(slots)}\n#### {answer}",
    }


def build() -> dict[str, list[Row]]:
    """The raw rows of each file, by its name: every story equally often, in an order that mixes the stories."""
    rng = random.Random(SEED)
    n_train, n_test = TRAIN_ROWS // len(STORIES), TEST_ROWS // len(STORIES)
    train: list[Row] = []
    test: list[Row] = []
    for name, story in STORIES.items():
        choices = product(range(SMALLEST, LARGEST + 1), repeat=2)
        suitable = [(a, b) for a, b in choices if solve(story.sign, a, b)]
        if len(suitable) <= n_test:
            raise ValueError(f"{len(suitable)} number pairs suit {name!r}, {n_test} go to test: raise LARGEST")
        rng.shuffle(suitable)
        test += [tell(name, a, b, rng) for a, b in suitable[:n_test]]
        told: dict[str, Row] = {}  # by question: numbers that come round again are told anew
        for a, b in cycle(suitable[n_test:]):
            row = tell(name, a, b, rng)
            told[row["question"]] = row
            if len(told) == n_train:
                break
        train += told.values()
    rng.shuffle(train)
    rng.shuffle(test)
    return {"gsm8k_train": train, "gsm8k_test": test}


if __name__ == "__main__":
    write_samples(build())
