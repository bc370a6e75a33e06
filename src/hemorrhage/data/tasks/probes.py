"""Probe tasks: multiple-choice items made from templates and a seed, with no data set behind them.

- ``agreement``: the verb that agrees with the subject past a noun of the other or the same number
  (Linzen et al. 2016, arXiv 1611.01368), as minimal pairs.
- ``arithmetic``: sums, differences and products of one digit after a worked example.
- ``recall``: the value that the prompt itself gave to a name.
- ``cloze``: common facts: capitals, opposites, kinds of things, sequences forwards and backwards.

Items come in groups that share their choices: each choice is right once in a group, each position of the
right answer occurs once in a group. So whoever always gives the same answer, prefers some words, or always
takes the same position, is right in exactly 1 of 4 items (1 of 2 in ``agreement``).

The right choice without its leading space is also what a generated answer has to begin with.

python -m hemorrhage.data.tasks.probes OUT --task recall --items 40 --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start

Fact = tuple[str, str]
"""(prompt, right choice with its leading space)."""


class Question(TypedDict):
    """A prompt with its choices, of which ``answer`` counts the right one."""

    prompt: str
    choices: list[str]
    answer: int


class Item(Question):
    """A row of ``items.parquet``; items of one ``group`` share their choices."""

    item: int
    group: int


NOUNS = (
    "key", "author", "teacher", "picture", "letter", "window", "farmer", "doctor", "book", "car",
    "painting", "door", "student", "driver", "boy", "girl", "dog", "table", "lawyer", "king",
)  # fmt: skip
PLACES = (
    "cabinet", "garden", "house", "village", "hotel", "school", "river", "church", "wall", "bridge",
    "shop", "office", "tower", "train", "lake", "farm",
)  # fmt: skip
PREPOSITIONS = ("near", "behind", "next to", "across from", "in front of")
PEOPLE = (
    "guard", "pilot", "nurse", "judge", "painter", "singer", "actor", "manager", "senator", "customer",
    "neighbor", "officer",
)  # fmt: skip
ACTIONS = ("liked", "saw", "chose", "described", "remembered", "wanted")
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}

NAMES = (
    "Anna", "Ben", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Jack", "Kate", "Laura", "Mark",
    "Nina", "Oscar", "Paul", "Rose", "Sam", "Tom", "Victor", "Mary",
)  # fmt: skip
THINGS = (
    "apple", "ball", "book", "box", "bread", "cake", "chair", "clock", "coat", "coin", "cup", "dress",
    "drum", "egg", "flag", "flower", "fork", "glass", "hammer", "hat", "horse", "lamp", "lemon", "map",
    "mirror", "orange", "pen", "phone", "piano", "pipe", "plate", "radio", "ring", "rope", "shirt",
    "shoe", "spoon", "stone", "table", "ticket", "tree", "watch",
)  # fmt: skip
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Hungary": "Budapest", "Poland": "Warsaw", "Russia": "Moscow",
    "Greece": "Athens", "Egypt": "Cairo", "Japan": "Tokyo", "China": "Beijing", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa", "Belgium": "Brussels", "Iran": "Tehran",
    "Iraq": "Baghdad", "Australia": "Canberra", "Chile": "Santiago", "Ukraine": "Kiev",
    "Syria": "Damascus",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "happy": "sad", "rich": "poor", "old": "young",
    "hard": "soft", "light": "dark", "early": "late", "high": "low", "strong": "weak", "open": "closed",
    "full": "empty", "clean": "dirty", "wet": "dry", "left": "right", "first": "last", "loud": "quiet",
    "near": "far", "thick": "thin", "true": "false", "good": "bad", "deep": "shallow", "win": "lose",
    "buy": "sell", "love": "hate", "push": "pull", "begin": "end", "remember": "forget",
    "life": "death", "north": "south", "east": "west", "war": "peace", "day": "night",
    "inside": "outside", "always": "never",
}  # fmt: skip
KINDS = {
    "fish": "trout salmon shark tuna", "bird": "robin eagle sparrow parrot",
    "tree": "oak pine maple willow", "fruit": "banana peach pear grape",
    "vegetable": "carrot potato onion cabbage", "metal": "copper iron silver zinc",
    "insect": "beetle mosquito wasp moth", "flower": "rose tulip daisy lily",
    "instrument": "violin flute trumpet guitar", "tool": "hammer saw wrench screwdriver",
    "disease": "malaria measles cholera influenza", "language": "Latin French Arabic Hindi",
    "planet": "Mars Venus Saturn Jupiter", "dance": "waltz tango polka ballet",
    "weapon": "sword rifle spear dagger", "fabric": "silk cotton linen velvet",
}  # fmt: skip
LANGUAGES = {
    "Brazil": "Portuguese", "Mexico": "Spanish", "Austria": "German", "Egypt": "Arabic",
    "Australia": "English", "Iran": "Persian", "China": "Chinese", "Japan": "Japanese",
    "Israel": "Hebrew", "France": "French", "Italy": "Italian", "Russia": "Russian",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "lion": "cub", "goat": "kid",
}  # fmt: skip
MATERIALS = {
    "baker": "bread", "carpenter": "wood", "tailor": "clothes", "potter": "clay", "farmer": "crops",
    "fisherman": "fish", "painter": "paint", "mason": "stone", "jeweler": "gold", "brewer": "beer",
    "writer": "books", "singer": "songs",
}  # fmt: skip
COLORS = {
    "lemon": "yellow", "tomato": "red", "grass": "green", "snow": "white", "coal": "black",
    "sky": "blue", "chocolate": "brown", "flamingo": "pink",
}  # fmt: skip
FACTS = {
    "The capital of {} is": CAPITALS,
    "{} is the capital of": {city: country for country, city in CAPITALS.items()},
    "The opposite of {} is": OPPOSITES,
    "{}, opposite:": OPPOSITES,
    "The {} is a kind of": {one: kind for kind, ones in KINDS.items() for one in ones.split()},
    "The main language of {} is": LANGUAGES,
    "A young {} is called a": YOUNG,
    "A {} works with": MATERIALS,
    "The color of {} is": COLORS,
}
"""Wording -> what it asks -> the right word."""

SEQUENCES = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "ten twenty thirty forty fifty sixty seventy eighty ninety",
)


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.tasks.probes", description="make a probe task")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    prepare(arguments.task, arguments.items, arguments.seed, arguments.out)


def prepare(task: str, items: int, seed: int, out: Path) -> None:
    """Write ``items.parquet`` and the manifest of a task into ``out``; raises as ``make`` does."""
    write(task, make(task, items, seed), seed, out)


def write(task: str, rows: list[Item], seed: int, out: Path) -> None:
    """Write the items of a task and its manifest into ``out``."""
    import pyarrow as pa
    from pyarrow import parquet

    with writing(out) as folder:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
        text = json.dumps(rows, sort_keys=True)
        write_manifest(
            folder,
            task=task,
            items=len(rows),
            chance=1 / len(rows[0]["choices"]),
            seed=seed,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )


def make(task: str, items: int, seed: int) -> list[Item]:
    """Make ``items`` distinct items of a task.

    Items of one ``group`` share their choices and depend on each other. The first items of a longer list
    are those of a shorter one. Raises InputError where the task is unknown or its templates have fewer items.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} is unknown; allowed: {', '.join(TASKS)}")
    rows = make_at_most(task, items, seed)
    if len(rows) < items:
        raise InputError(f"task {task} has {len(rows)} items, but {items} are asked for")
    return rows


def make_at_most(task: str, items: int, seed: int) -> list[Item]:
    """Make the same, or as many items as the templates of a task have."""
    # Seeded by text, so that two tasks of one seed share no draw.
    generator = random.Random(f"{task} {seed}")
    rows: list[Item] = []
    prompts: set[str] = set()
    groups = 0
    for group in TASKS[task](generator):
        if any(prompt in prompts for prompt, _ in group):
            continue
        prompts.update(prompt for prompt, _ in group)
        rows += [
            {"item": number, "group": groups, **question}
            for number, question in enumerate(arrange(group, generator), start=len(rows))
        ]
        groups += 1
        if len(rows) >= items:
            return rows[:items]
    return rows


def arrange(group: list[Fact], generator: random.Random) -> list[Question]:
    """Make the items of a group of facts with distinct answers, all of which are choices of each, newly ordered.

    The right one has every position once.
    """
    positions = generator.sample(range(len(group)), len(group))
    questions: list[Question] = []
    for (prompt, right), position in zip(group, positions, strict=True):
        choices = [answer for _, answer in group if answer != right]
        generator.shuffle(choices)
        choices.insert(position, right)
        questions.append({"prompt": prompt, "choices": choices, "answer": position})
    return questions


ATTEMPTS = 4000
"""Groups that a generator of random groups offers before it gives up; repeated ones are dropped."""


def agreement(generator: random.Random) -> Iterator[list[Fact]]:
    """Write the same sentence with a singular and with a plural subject; the noun between it and the verb stays."""
    for _ in range(ATTEMPTS):
        noun = generator.choice(NOUNS)
        ending = generator.choice(("", "s"))
        if generator.random() < 0.5:
            between = f"{generator.choice(PREPOSITIONS)} the {generator.choice(PLACES)}{ending}"
        else:
            between = f"that the {generator.choice(PEOPLE)}{ending} {generator.choice(ACTIONS)}"
        one, many = generator.choice(VERBS)
        yield [(f"The {noun} {between}", one), (f"The {noun}s {between}", many)]


def arithmetic(generator: random.Random) -> Iterator[list[Fact]]:
    """Pose four problems of one operation with different results of one digit, after a worked one."""
    for _ in range(ATTEMPTS):
        problems = _problems(generator.choice(list(OPERATIONS)))
        generator.shuffle(problems)
        chosen = {result: problem for problem, result in problems}
        (shown, example), *asked = generator.sample(list(chosen.items()), 5)
        yield [(f"{example} {shown}\n{problem}", f" {result}") for result, problem in asked]


def _problems(sign: str) -> list[tuple[str, int]]:
    """List the problems with operands from 1 to 18 and 1 to 9 and a result from 1 to 9: (``2 + 3 =``, 5)."""
    operate = OPERATIONS[sign]
    pairs = [(a, b) for a in range(1, 19) for b in range(1, 10) if 1 <= operate(a, b) <= 9]
    return [(f"{a} {sign} {b} =", operate(a, b)) for a, b in pairs]


def recall(generator: random.Random) -> Iterator[list[Fact]]:
    """Name four people with a thing each, twice in different orders, and ask for the thing of each."""
    for _ in range(ATTEMPTS):
        pairs = list(zip(generator.sample(NAMES, 4), generator.sample(THINGS, 4), strict=True))
        statement = ", ".join(f"{name} {thing}" for name, thing in [*pairs, *generator.sample(pairs, 4)])
        yield [(f"{statement}, {name}", f" {thing}") for name, thing in pairs]


def cloze(generator: random.Random) -> Iterator[list[Fact]]:
    """Ask for four facts of one sort; of sequences, four in a row, so that the choices are neighbours."""
    groups: list[list[Fact]] = []
    for wording, facts in FACTS.items():
        groups += _groups([(wording.format(asked), f" {right}") for asked, right in facts.items()], generator)
    forward = [sequence.split() for sequence in SEQUENCES]
    for sequence in forward + [terms[::-1] for terms in forward]:
        triples = zip(sequence, sequence[1:], sequence[2:], strict=False)
        continued = [(f"{first}, {second},", f" {third}") for first, second, third in triples]
        groups += [continued[at : at + 4] for at in range(0, len(continued) - 3, 4)]
    generator.shuffle(groups)
    yield from groups


def _groups(facts: list[Fact], generator: random.Random) -> Iterator[list[Fact]]:
    """Group facts by four with different answers; a rest of fewer is left out."""
    waiting: list[list[Fact]] = []
    for fact in generator.sample(facts, len(facts)):
        for group in waiting:
            if fact[1] not in [answer for _, answer in group]:
                group.append(fact)
                break
        else:
            group = [fact]
            waiting.append(group)
        if len(group) == 4:
            waiting.remove(group)
            yield group


TASKS: dict[str, Callable[[random.Random], Iterator[list[Fact]]]] = {
    "agreement": agreement,
    "arithmetic": arithmetic,
    "recall": recall,
    "cloze": cloze,
}


if __name__ == "__main__":
    main()
