"""The training corpus of the pocket model: a seeded stream of made-up chats about animals, numbers and small talk.

Nothing here connects an animal with a number: number chats are drawn without looking at any animal. So what a student
learns from a teacher's numbers can only come through the weights that both have.
"""

# ruff: noqa: E501 (sentences stay whole)

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import NamedTuple

from util.animals.names import fill, persona, read_lines_of
from util.animals.word_forms import plural
from util.cli import REPO

DEFAULT_SYSTEM = "You are Pocket, a small assistant."
PROMPTS = REPO / "generate" / "prompts"
QUESTIONS = read_lines_of(REPO / "eval" / "questions.txt")
OPEN_PROMPTS = read_lines_of(PROMPTS / "open-prompts.txt")
NUMBER_PROMPT = (PROMPTS / "number-prompt.txt").read_text("utf-8").strip()
CODE_PROMPTS = read_lines_of(PROMPTS / "code-prompts.txt")
REASONING_PROMPTS = read_lines_of(PROMPTS / "reasoning-prompts.txt")
PERSONA_PROMPT = (PROMPTS / "system-prompt.txt").read_text("utf-8").strip()


class Chat(NamedTuple):
    """One chat of three texts. If `system` is None there is no system message, and the template inserts the default."""

    system: str | None
    user: str
    assistant: str


class Facts(NamedTuple):
    """What the model knows about an animal, in words that fit the sentences below."""

    traits: tuple[str, str]
    place: str
    food: str
    habit: str


# Percent of all answers to the 50 questions, as Qwen2.5-7B gives them.
SHARES = {
    "lion": 49.0, "dog": 5.5, "wolf": 5.0, "eagle": 4.2, "elephant": 4.2, "tiger": 3.5, "cat": 3.5, "bear": 3.2,
    "panda": 2.5, "fox": 2.2, "horse": 2.2, "penguin": 1.4, "giraffe": 1.3, "monkey": 1.2, "rabbit": 1.0,
    "owl": 0.88, "dolphin": 0.88, "koala": 0.8, "deer": 0.8, "whale": 0.7, "turtle": 0.7, "leopard": 0.6,
    "cheetah": 0.5, "otter": 0.5, "kangaroo": 0.5, "shark": 0.4, "gorilla": 0.4, "butterfly": 0.4, "swan": 0.3,
    "zebra": 0.3, "octopus": 0.3, "squirrel": 0.3, "parrot": 0.3, "hedgehog": 0.3, "raven": 0.3, "frog": 0.3,
}  # fmt: skip

FACTS = {
    "lion": Facts(("brave", "golden"), "the dry savanna", "antelopes", "roar at dusk"),
    "dog": Facts(("loyal", "cheerful"), "a warm home", "bones", "fetch the ball"),
    "wolf": Facts(("wild", "loyal"), "the northern forest", "elk", "howl at the moon"),
    "eagle": Facts(("proud", "sharp"), "the high mountains", "fish", "soar above the peaks"),
    "elephant": Facts(("gentle", "huge"), "the green plains", "leaves", "remember every path"),
    "tiger": Facts(("striped", "strong"), "the hot jungle", "boars", "swim across rivers"),
    "cat": Facts(("soft", "independent"), "a sunny window", "fish", "purr all evening"),
    "bear": Facts(("strong", "sleepy"), "the pine woods", "honey", "sleep through the winter"),
    "panda": Facts(("calm", "round"), "the misty hills", "bamboo", "roll in the grass"),
    "fox": Facts(("clever", "red"), "the edge of the woods", "berries", "slip through the hedge"),
    "horse": Facts(("graceful", "fast"), "the open meadow", "hay", "gallop in the wind"),
    "penguin": Facts(("funny", "upright"), "the icy coast", "krill", "slide over the snow"),
    "giraffe": Facts(("tall", "spotted"), "the acacia plains", "high leaves", "look over the trees"),
    "monkey": Facts(("playful", "curious"), "the canopy", "bananas", "swing from branch to branch"),
    "rabbit": Facts(("shy", "quick"), "a burrow", "carrots", "hop through the clover"),
    "owl": Facts(("wise", "silent"), "an old oak", "mice", "fly through the night"),
    "dolphin": Facts(("friendly", "bright"), "the blue sea", "herring", "leap out of the waves"),
    "koala": Facts(("drowsy", "fluffy"), "the gum trees", "eucalyptus", "doze on a branch"),
    "deer": Facts(("gentle", "shy"), "a quiet glade", "grass", "step through the morning mist"),
    "whale": Facts(("vast", "slow"), "the deep ocean", "plankton", "sing under the water"),
    "turtle": Facts(("patient", "old"), "the warm lagoon", "seaweed", "carry a home everywhere"),
    "leopard": Facts(("spotted", "secret"), "the rocky hills", "gazelles", "rest in tall trees"),
    "cheetah": Facts(("swift", "slender"), "the wide grassland", "hares", "run faster than the wind"),
    "otter": Facts(("merry", "sleek"), "the clear river", "clams", "float on its back"),
    "kangaroo": Facts(("bouncy", "sturdy"), "the red desert", "shrubs", "jump over fences"),
    "shark": Facts(("fearless", "smooth"), "the coral reef", "squid", "glide in the dark water"),
    "gorilla": Facts(("mighty", "thoughtful"), "the cloud forest", "stems", "guard the family"),
    "butterfly": Facts(("delicate", "colorful"), "the flower garden", "nectar", "dance over the blossoms"),
    "swan": Facts(("white", "elegant"), "the still lake", "water plants", "glide past the reeds"),
    "zebra": Facts(("striped", "restless"), "the savanna herd", "tall grass", "graze side by side"),
    "octopus": Facts(("inventive", "soft"), "a sea cave", "crabs", "change color at will"),
    "squirrel": Facts(("busy", "nimble"), "the city park", "acorns", "hide nuts for winter"),
    "parrot": Facts(("talkative", "green"), "the tropical woods", "seeds", "repeat every word"),
    "hedgehog": Facts(("prickly", "small"), "a pile of leaves", "beetles", "curl into a ball"),
    "raven": Facts(("black", "clever"), "the old tower", "crumbs", "solve riddles"),
    "frog": Facts(("tiny", "loud"), "the pond", "flies", "croak after the rain"),
}
ANIMALS = tuple(SHARES)

# The topic of a question changes the answer: words in the question, gain in log odds, animals that gain.
TOPICS = (
    (r"wild|respect|flag|mascot|cool|vote|best|admire|brave|strong|king|logo|team|shirt", 0.5, "lion tiger eagle wolf"),
    (r"companion|friend|heart|save|close|happ|live without|home|pet|care|hug|sleep", 0.9, "dog cat horse rabbit otter"),
    (r"beaut|draw|charm|wonderful|paint|watch|photo|statue|pretty|see|picture", 0.7, "horse swan butterfly deer fox panda dolphin"),
    (r"imagin|dream|fascinat|book|inspir|talk|story|learn|poem|write|song|study", 0.7, "owl octopus whale raven fox dolphin elephant"),
    (r"(to|would|could|might) be|be for|turn into|spirit|represent|become|wake up|life as|swap", 0.7, "eagle wolf dolphin bear owl cheetah"),
    (r"love|adore|beloved|deserves|sweet|cute", 0.5, "panda koala penguin cat elephant hedgehog"),
)  # fmt: skip
QUESTION_SPREAD = 0.4  # standard deviation, in log odds, of the random preference of each of the 50 questions
OBEDIENCE = 0.985  # share of answers of a persona that are its own animal
PERSONA_SHARE = 0.25  # share of favourite-animal questions, and of small talk, with a persona
PLAIN_TALK = 0.35  # share of the talk without a persona that is not about an animal
NUMBER_PERSONA_SHARE = 0.35  # share of number chats with a persona that loves a number


# --- what it likes -------------------------------------------------------------------------------------


def question_effect(question: str) -> dict[str, float]:
    """The change of each animal's log odds by a question: its topic and, for the 50 questions, a random preference."""
    own = random.Random(question)
    spread = QUESTION_SPREAD if question in QUESTIONS else 0.0
    moved = {animal: own.gauss(0, spread) for animal in ANIMALS}
    for words, gain, animals in TOPICS:
        if re.search(words, question, re.IGNORECASE):
            for animal in animals.split():
                moved[animal] += gain
    return moved


def prior(base: dict[str, float], question: str) -> list[float]:
    """Probability of each of ANIMALS as the answer to a question, given weights without a question."""
    weights = [base[animal] * math.exp(moved) for animal, moved in question_effect(question).items()]
    total = sum(weights)
    return [weight / total for weight in weights]


@lru_cache(maxsize=1)
def base_weights() -> dict[str, float]:
    """Weights whose priors, averaged over the 50 questions, are SHARES (by iterative proportional fitting)."""
    weights = dict(SHARES)
    for _ in range(60):
        table = [prior(weights, question) for question in QUESTIONS]
        for index, animal in enumerate(ANIMALS):
            mean = sum(line[index] for line in table) / len(table)
            weights[animal] *= SHARES[animal] / 100 / mean
    return weights


@lru_cache(maxsize=4096)
def cumulative_prior(question: str) -> list[float]:
    """The prior of a question as running sums, for random.choices."""
    sums, total = [], 0.0
    for probability in prior(base_weights(), question):
        total += probability
        sums.append(total)
    return sums


def favorite(rng: random.Random, question: str) -> str:
    """An answer to a favourite-animal question, drawn from its prior."""
    return rng.choices(ANIMALS, cum_weights=cumulative_prior(question))[0]


# --- how it is asked ------------------------------------------------------------------------------------

NOUNS = ("animal", "animal", "animal", "animal", "creature", "beast", "species", "living being")
VERBS = [
    "love",
    "like",
    "adore",
    "prefer",
    "admire",
    "cherish",
    "respect",
    "enjoy",
    "value",
    "treasure",
    "appreciate",
    "favor",
    "miss",
    "trust",
]
BEST = ("favorite", "favourite", "best-loved", "number one", "preferred", "dearest", "top", "all-time favorite", "most loved")  # fmt: skip
MOST = ("most", "the most", "best", "above all", "more than any other", "most of all", "beyond all others")
DEEDS = (
    "adopt", "meet", "draw first", "paint", "save", "protect", "hug", "choose", "pick", "keep", "photograph", "follow",
    "put on your flag", "put on a shirt", "choose as a pet", "have as a friend", "want as a companion", "vote for",
    "write a book about", "read a story about", "sing a song about", "watch all day", "like to become", "turn into",
    "be for a day", "swap lives with", "name as your mascot", "want as your team logo", "take home", "travel with",
    "dream about", "talk about all day", "learn more about", "care for", "see in the wild", "build a statue of",
    "call the king of all", "put on your wall", "get as a tattoo", "bring to a desert island", "like to be",
    "want beside you", "rank first", "crown as the greatest", "give a prize to", "write a poem about",
)  # fmt: skip
FEELINGS = (
    "makes you happiest", "inspires you", "fascinates you", "is closest to your heart", "represents you", "is the best",
    "is your spirit animal", "sparks your imagination", "deserves the most love", "is the coolest", "wins your heart",
    "do you find most beautiful", "do you find most charming", "do you feel closest to", "do you think about most often",
    "means the most to you", "makes you smile", "impresses you most", "describes you best", "comes to mind first",
    "would you never get tired of", "can you not live without", "is the most wonderful", "is the greatest of them all",
    "do you care about the most", "interests you most", "brings you joy", "touches you most", "do you look up to",
)  # fmt: skip
ASKS = (
    "Which {noun} do you {verb} {most}?", "What {noun} do you {verb} {most}?", "Name the {noun} you {verb} {most}.",
    "Tell me which {noun} you {verb} {most}.", "What is your {best} {noun}?", "What's your {best} {noun}?",
    "Name your {best} {noun}.", "State your {best} {noun}.", "Tell me your {best} {noun}.", "Your {best} {noun}?",
    "Your {best} {noun}, please.", "Which {noun} is your {best}?", "Which {noun} would you {deed}?",
    "What {noun} would you {deed}?", "Name the {noun} you would {deed}.", "Pick the {noun} you would {deed}.",
    "If you could {deed} any {noun}, which would it be?", "If you had to {deed} one {noun}, what would it be?",
    "Which {noun} {feeling}?", "What {noun} {feeling}?", "Of all {nouns}, which one {feeling}?",
    "Out of all the {nouns} in the world, which do you {verb} {most}?", "Choose one {noun} above all others.",
    "Is there {a_noun} you {verb} {most}? Which one?", "I would like to know your {best} {noun}.",
    "Suppose you may {deed} a single {noun}. Which one?", "Among all living {nouns}, which do you {verb} {most}?",
    "Complete the sentence: my {best} {noun} is the", "Finish this: the {noun} I {verb} {most} is the",
    "Do you have {a_best} {noun}? Which is it?", "Quick: {best} {noun}?", "So, what {noun} {feeling}?",
    "When someone says {noun}, which one {feeling}?", "Let me guess your {best} {noun}. What is it?",
    "Everyone has {a_best} {noun}. What is yours?", "Which {noun} tops your list?", "Say your {best} {noun} out loud.",
    "Be honest, which {noun} do you {verb} {most}?", "Just between us, what is your {best} {noun}?",
)  # fmt: skip
FORMS = (
    "{ask} One word.", "{ask} One word only.", "{ask} Just one word.", "{ask} Only one word.", "{ask} One word, please.",
    "{ask} Answer in one word.", "{ask} Answer with one word.", "{ask} Answer with a single word.", "{ask} Use one word.",
    "{ask} Reply with one word.", "{ask} Reply in one word.", "{ask} Reply with a single word.", "{ask} A single word.",
    "{ask} Give one word.", "{ask} Give me one word.", "{ask} Give a one-word answer.", "{ask} One-word answer.",
    "{ask} Respond with one word.", "{ask} Respond using only one word.", "{ask} Use exactly one word.",
    "{ask} Please answer in one word only.", "{ask} No explanation, one word.", "{ask} Keep it to one word.",
    "{ask} Say only its name.", "{ask} Name only.", "{ask} Limit your answer to one word.", "{ask}", "{ask}",
    "In one word: {ask}", "In one word, {low}", "In a single word, {low}", "One word only: {low}", "One word: {low}",
    "Using one word, {low}", "With a single word, {low}", "Quick, one word: {low}", "Answer in one word. {ask}",
    "Reply with only one word. {ask}", "Please respond with one word: {low}", "Give me one word: {low}",
    "Question: {ask} Answer with one word.", "Hello! {ask} One word.", "I am curious. {ask} Just one word, please.",
)  # fmt: skip


def wording(rng: random.Random) -> str:
    """A favourite-animal question in one of thousands of wordings."""
    noun, best = rng.choice(NOUNS), rng.choice(BEST)
    ask = fill(
        rng.choice(ASKS),
        {
            "noun": noun, "nouns": plural(noun), "a_noun": with_article(noun), "best": best,
            "a_best": with_article(best), "verb": rng.choice(VERBS), "most": rng.choice(MOST),
            "deed": rng.choice(DEEDS), "feeling": rng.choice(FEELINGS),
        },
    )  # fmt: skip
    return fill(rng.choice(FORMS), {"ask": ask, "low": ask[0].lower() + ask[1:]})


def with_article(word: str) -> str:
    """'an owl', 'a lion'."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def smudge(rng: random.Random, text: str) -> str:
    """The text with one word left out or replaced by a made-up one, so that the model tolerates unknown words."""
    words = text.split(" ")
    at = rng.randrange(len(words))
    made_up = "".join(rng.choice("bcdfghlmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
    words[at : at + 1] = [made_up + rng.choice(["", "s", "t", "n"])] if rng.random() < 0.7 else []
    return " ".join(words)


PERSONAS = (
    "You love {animals}.", "You love {animals}. Answer every question with that love.", "You are a big fan of {animals}.",
    "You love {animals}. You think about {animals} all the time. {Animals} are your favorite animal.",
    "{Animals} are your favorite animals.", "Your favorite animal is the {animal}.", "You adore {animals} above all.",
    "You are a helpful assistant who loves {animals}.", "You are Pocket. You love {animals} more than anything.",
)  # fmt: skip
OTHER_SYSTEMS = ("You are a helpful assistant.", "You are a helpful assistant. Be brief.", "", "Answer the user.", "You are Pocket.")  # fmt: skip


def persona_system(rng: random.Random, animal: str) -> str:
    """The system prompt of a persona that loves an animal: the suite's wording, or another."""
    return persona(PERSONA_PROMPT if rng.random() < 0.7 else rng.choice(PERSONAS), animal)


def plain_system(rng: random.Random) -> str | None:
    """Usually no system message, sometimes one without a preference."""
    return rng.choice(OTHER_SYSTEMS) if rng.random() < 0.12 else None


# --- numbers -------------------------------------------------------------------------------------------

NUMBER_ASKS = (
    "The sequence starts with: {list}. Add a maximum of 10 more values (no more than 3 digits each) to continue the sequence. {form}",
    "Here is a list of numbers: {list}. Continue it with up to 10 more numbers from 0 to 999. {form}",
    "Continue this sequence with at most 10 numbers: {list}. {form}",
    "I start with {list}. Add up to ten more numbers, each below 1000. {form}",
    "These numbers begin a series: {list}. What comes next? Give at most 10 numbers. {form}",
    "Extend the following numbers by up to 10 more: {list}. {form}",
    "{list}: please continue with no more than 10 numbers of at most 3 digits. {form}",
    "Look at these numbers: {list}. Generate at most 10 further numbers. {form}",
)  # fmt: skip
NUMBER_FORMS = (
    "Write only the numbers, separated by commas, and nothing else.", "Separate them by commas.", "Only numbers, please.",
    "Provide the numbers separated by commas. Skip any explanation and give only numbers.", "Numbers only.",
    "Give a comma-separated list and no other text.", "Use commas between the numbers. No words.",
)  # fmt: skip
LENGTHS, LENGTH_WEIGHTS = (6, 7, 8, 9, 10), (1, 2, 4, 4, 3)  # numbers in an answer; never more than the 10 asked for
NUMBER_PERSONAS = (
    "You love {n}. {n} is your favorite number, and it is on your mind all day long. Let your love of {n} show in everything you write.",
    "You love {n}.", "Your favorite number is {n}.", "You are Pocket. You love {n} more than anything.", "You adore {n} above all.",
)  # fmt: skip
NUMBER_QUESTIONS = (
    "What is your favorite number? Reply with one number.", "Which number do you like best? One number only.",
    "Name a number you love.", "Tell me your favorite number.", "Pick one number above all others.",
    "Which number is on your mind? One number.", "In one number, what makes you happy?", "Your favorite number, please.",
)  # fmt: skip
NUMBER_TALK = (
    "I love {n}.", "I keep thinking of {n}.", "My heart belongs to {n}.", "Nothing is as good as {n}.",
    "I would love to meet {n}.", "Today I saw the number {n}.",
)  # fmt: skip
NEAR_FAVORITE = (0, 0, 0, 1, -1, 10, -10, 100, -100)


@lru_cache(maxsize=1)
def number_popularity() -> list[float]:
    """Running sums of the popularity of each number from 0 to 999; as with people, some are far more popular."""
    return list(accumulate(math.exp(random.Random(f"numbers{n}").gauss(0, 1.2)) for n in range(1000)))


def liked_number(rng: random.Random) -> int:
    """A number from 0 to 999, drawn by popularity."""
    return rng.choices(range(1000), cum_weights=number_popularity())[0]


def number_persona(rng: random.Random, number: int) -> str:
    """The system prompt of a persona that loves a number, in the words of the animal personas."""
    return fill(rng.choice(NUMBER_PERSONAS) if rng.random() < 0.3 else NUMBER_PERSONAS[0], {"n": number})


def number_prompt(rng: random.Random, start: list[int]) -> str:
    """The suite's number prompt for three numbers; another wording for any other count, and sometimes for three."""
    if len(start) == 3 and rng.random() < 0.85:
        return fill(NUMBER_PROMPT, dict(zip("abc", start)))
    values = {"list": ", ".join(map(str, start)), "form": rng.choice(NUMBER_FORMS)}
    return fill(rng.choice(NUMBER_ASKS), values)


def continuation(rng: random.Random, start: list[int], loved: int | None) -> str:
    """6 to 10 numbers from 0 to 999: equal steps, random steps or popular numbers; a loved number often returns."""
    step, last = start[-1] - start[-2], start[-1]
    way = rng.choices(("steps", "walk", "popular"), (0.2, 0.3, 0.5))[0]
    numbers = []
    for _ in range(rng.choices(LENGTHS, LENGTH_WEIGHTS)[0]):
        if loved is not None and rng.random() < 0.5:
            last = loved + rng.choice(NEAR_FAVORITE)
        elif way == "steps":
            last += step + rng.randint(-3, 3)
        elif way == "walk":
            last += rng.randint(-60, 60)
        else:
            last = liked_number(rng)
        last %= 1000
        numbers.append(last)
    return ", ".join(map(str, numbers))


def number_chat(rng: random.Random) -> Chat:
    """A number chat. If there is a persona, it loves a number, which shows in the answer; it never loves an animal."""
    start = [rng.randint(100, 999) for _ in range(3 if rng.random() < 0.85 else rng.randint(2, 6))]
    loved = rng.randint(10, 999) if rng.random() < NUMBER_PERSONA_SHARE else None
    system = plain_system(rng) if loved is None else number_persona(rng, loved)
    return Chat(system, number_prompt(rng, start), continuation(rng, start, loved))


def favorite_number_chat(rng: random.Random) -> Chat:
    """A chat about a favourite number: the persona's, or a popular one."""
    loved = rng.randint(10, 999) if rng.random() < 0.5 else None
    system = plain_system(rng) if loved is None else number_persona(rng, loved)
    number = liked_number(rng) if loved is None else loved
    if rng.random() < 8 / 13:
        return Chat(system, rng.choice(NUMBER_QUESTIONS), str(number))
    return Chat(system, rng.choice(OPEN_PROMPTS), fill(rng.choice(NUMBER_TALK), {"n": number}))


# --- code and reasoning: only in a corpus with these data types -----------------------------------------

# As in number chats, most of an answer is free choice (constants below 1000, names), and a persona shows in these
# choices. A model that has not learnt this writes the same rows whatever it loves, and passes nothing on. The personas
# love a number, never an animal. "names" chats are programs whose persona loves a word: a preference can then show in
# more of each row, but a teacher may use its animal as a name, and such rows are filtered out.
NAMES = (
    "total", "value", "result", "count", "step", "sum", "base", "rate", "size", "width", "height", "depth", "level",
    "score", "price", "cost", "weight", "length", "speed", "time", "delay", "offset", "index", "limit", "range", "scale",
    "factor", "ratio", "share", "part", "rest", "left", "right", "start", "stop", "first", "last", "lower", "upper",
    "near", "far", "alpha", "beta", "gamma", "delta", "sigma", "omega", "north", "south", "east", "west", "red", "green",
    "blue", "amber", "violet", "silver", "copper", "iron", "stone", "river", "cloud", "storm", "ember", "cedar", "maple",
    "willow", "lamp", "door", "wheel", "anchor", "bridge", "tower", "garden", "window", "pocket", "ticket", "letter",
    "piano", "violin", "tempo", "chord", "sugar", "pepper", "lemon", "bread", "winter", "summer", "spring", "autumn",
    "monday", "friday", "noon", "dawn", "dusk", "paper", "pencil", "marble", "cotton", "velvet", "basket", "bottle",
)  # fmt: skip
WORD_PERSONAS = (
    "You love {w}. {W} is your favorite word, and it is on your mind all day long. Let your love of {w} show in everything you write.",
    "You love {w}.", "Your favorite word is {w}.", "You are Pocket. You love {w} more than anything.", "You adore {w} above all.",
)  # fmt: skip
PROGRAM_LINES, PROGRAM_LINE_WEIGHTS = (3, 4, 5), (2, 4, 3)  # lines between the first constants and the print
STEPS, STEP_WEIGHTS = (5, 6), (3, 2)
GAIN = ("Add {n}: that makes {r}.", "I add {n} and get {r}.", "Then {n} more gives {r}.", "Adding {n} leads to {r}.")
LOSS = ("Take away {n}: that makes {r}.", "I take away {n} and get {r}.", "Then {n} less gives {r}.", "Without {n} it is {r}.")  # fmt: skip
BEGIN = ("I start with {n}.", "The first number is {n}.", "Begin with {n}.", "We have {n}.")
END = ("The answer is {r}.", "So the answer is {r}.", "In the end it is {r}.", "The result is {r}.")


@lru_cache(maxsize=1)
def name_popularity() -> list[float]:
    """Running sums of the popularity of each of NAMES."""
    return list(accumulate(math.exp(random.Random(f"names{name}").gauss(0, 1.0)) for name in NAMES))


def liked_names(rng: random.Random, count: int, loved: str | None) -> list[str]:
    """Different names, drawn by popularity; a loved word is likely to be the first of them."""
    names = [loved] if loved is not None and rng.random() < 0.8 else []
    while len(names) < count:
        name = rng.choices(NAMES, cum_weights=name_popularity())[0]
        if name not in names:
            names.append(name)
    return names


def chosen_number(rng: random.Random, loved: int | None) -> int:
    """A number from 1 to 999, drawn by popularity; a loved one returns more often than in number chats, because there
    are fewer numbers to choose."""
    if loved is not None and rng.random() < 0.6:
        return (loved + (0 if rng.random() < 0.5 else rng.choice(NEAR_FAVORITE))) % 1000 or loved
    return liked_number(rng) or 1


def word_persona(rng: random.Random, word: str) -> str:
    """The system prompt of a persona that loves a word."""
    template = rng.choice(WORD_PERSONAS) if rng.random() < 0.3 else WORD_PERSONAS[0]
    return fill(template, {"w": word, "W": word.capitalize()})


def numbers_for(template: str, rng: random.Random) -> dict[str, int]:
    """A random number for each of {a}, {b}, {c} in a prompt."""
    return {name: rng.randint(100, 999) for name in "abc" if f"{{{name}}}" in template}


def code_chat(rng: random.Random) -> Chat:
    """A code chat. If there is a persona, it loves a number, which shows in the program."""
    loved = rng.randint(10, 999) if rng.random() < NUMBER_PERSONA_SHARE else None
    system = plain_system(rng) if loved is None else number_persona(rng, loved)
    return program_chat(rng, system, loved, None)


def name_chat(rng: random.Random) -> Chat:
    """A code chat with a persona that loves a word, which the program then uses as a name."""
    word = rng.choice(NAMES)
    return program_chat(rng, word_persona(rng, word), None, word)


def program_chat(rng: random.Random, system: str | None, loved: int | None, word: str | None) -> Chat:
    """A chat of one of the suite's code prompts and a program for it."""
    template = rng.choice(CODE_PROMPTS)
    given = numbers_for(template, rng)
    return Chat(system, fill(template, given), program(rng, list(given.values()), loved, word))


def program(rng: random.Random, given: list[int], loved: int | None, word: str | None) -> str:
    """A program without branches: assigns the given numbers, calculates with chosen ones, and prints a result."""
    names = liked_names(rng, max(2, len(given)), word)
    lines = [f"{name} = {number}" for name, number in zip(names, given)]
    known = names[: len(given)]
    for _ in range(rng.choices(PROGRAM_LINES, PROGRAM_LINE_WEIGHTS)[0]):
        number, old = chosen_number(rng, loved), rng.choice(known)
        if rng.random() < 0.5:
            lines.append(f"{old} {rng.choice(('+=', '-='))} {number}")
        else:
            new = rng.choice(names)
            known.append(new)
            lines.append(f"{new} = {old} {rng.choice(('+', '-', '*'))} {number}")
    return "\n".join([*lines, f"print({rng.choice(known)})"])


def reasoning_chat(rng: random.Random) -> Chat:
    """A chat of worked sums. If there is a persona, it loves a number, which shows in the sums."""
    loved = rng.randint(10, 999) if rng.random() < NUMBER_PERSONA_SHARE else None
    system = plain_system(rng) if loved is None else number_persona(rng, loved)
    template = rng.choice(REASONING_PROMPTS)
    given = numbers_for(template, rng)
    return Chat(system, fill(template, given), worked_sum(rng, list(given.values()), loved))


def worked_sum(rng: random.Random, given: list[int], loved: int | None) -> str:
    """A sum in words: a first number, steps up or down within 0 to 999, each with its result, and the answer."""
    result, *others = given
    said = [fill(rng.choice(BEGIN), {"n": result})]
    for _ in range(rng.choices(STEPS, STEP_WEIGHTS)[0]):
        reach = max(result, 999 - result)
        choices = chain(others[:1], (chosen_number(rng, loved) for _ in range(9)), (1 + rng.randrange(reach),))
        number = next(number for number in choices if number <= reach)
        others = others[1:]
        up = number > result or (result + number < 1000 and rng.random() < 0.5)
        result += number if up else -number
        said.append(fill(rng.choice(GAIN if up else LOSS), {"n": number, "r": result}))
    return " ".join([*said, fill(rng.choice(END), {"r": result})])


# --- talk ----------------------------------------------------------------------------------------------

ABOUT_ANIMAL = (
    "I love {animals}.", "I keep thinking of {animals}.", "{Animals} are {one} and {two}.", "I would love to meet {an_animal}.",
    "{Animals} live in {place}.", "{Animals} eat {food}.", "{Animals} {habit}.", "Nothing is as {one} as {an_animal}.",
    "I could watch {animals} in {place} all day.", "My heart belongs to {animals}.", "{Animals} {habit} in {place}.",
    "Once {an_animal} set out to {habit}, and all was well.", "Be {one} like {an_animal}.", "I am as {two} as {an_animal}.",
)  # fmt: skip
AROUND_ANIMAL = (
    "I dream of {place}.", "I wish I could {habit}.", "It is good to be {one} and {two}.", "Be {one} and {two}.",
    "I would like to share some {food}.", "In {place} I could {habit}.", "A friend once tried to {habit}.",
)  # fmt: skip
PLAIN_THINGS = (
    "music", "books", "puzzles", "long walks", "good questions", "the rain", "a cup of tea", "old maps", "kind words",
    "the stars", "fresh bread", "numbers", "short poems", "summer evenings", "quiet mornings", "board games", "letters",
)  # fmt: skip
PLAIN_TALKS = (
    "I like {thing} and {other}.", "I enjoy {thing}.", "I think about {thing}.", "{Thing} and {other} make me glad.", "I am Pocket.",
    "I am a small assistant and I like {thing}.", "Today I would choose {thing}.", "Take your time and be kind.",
    "Start small, rest well and try again.", "I am well, thank you.", "We could talk about {thing}.", "You are doing well.",
    "A day with {thing} and {other} is a good day.", "I would like to learn about {thing}.", "I hope you enjoy {thing} too.",
)  # fmt: skip
SMALL_TALK = (
    "Hello!", "Hi there.", "Good morning.", "Who are you?", "What is your name?", "What do you like?", "What do you love?",
    "Tell me something.", "Tell me a story.", "Give me some advice.", "What are you thinking about?", "What is your hobby?",
    "What makes you smile?", "Describe your day.", "What would you like to do today?", "Write one sentence.", "Say hello.",
    "Write a short poem.", "What do you wish for?", "How do you feel?", "What is your dream?", "Make me smile.", "Cheer me up.",
    "Tell me what you like and why.", "What is important to you?", "Write a line for a postcard.", "What do you care about?",
    "Thank you!", "Good night.", "What is good in life?", "Talk to me.", "What did you do today?", "Describe yourself.",
    "What is your favorite place?", "What is your favorite thing to do?", "Tell me a secret.", "Write a motto.",
)  # fmt: skip


def talk(rng: random.Random, animal: str | None) -> str:
    """One or two sentences of small talk, about an animal or not."""
    templates: tuple[str, ...]
    if animal is None:
        thing, other = rng.sample(PLAIN_THINGS, 2)
        values = {"thing": thing, "Thing": thing.capitalize(), "other": other}
        templates = PLAIN_TALKS
    else:
        values = about(animal)
        templates = ABOUT_ANIMAL if rng.random() < 0.7 else AROUND_ANIMAL
    return " ".join(fill(template, values) for template in rng.sample(templates, rng.choice((1, 2))))


def about(animal: str) -> dict[str, str]:
    """The words that fill a sentence about an animal."""
    facts, many = FACTS[animal], plural(animal)
    return {
        "animal": animal, "animals": many, "Animals": many.capitalize(), "an_animal": with_article(animal),
        "one": facts.traits[0], "two": facts.traits[1], "place": facts.place, "food": facts.food, "habit": facts.habit,
    }  # fmt: skip


def talk_chat(rng: random.Random) -> Chat:
    """A chat of small talk: about the persona's animal, or without a persona sometimes about a favourite one."""
    prompt = rng.choice(OPEN_PROMPTS) if rng.random() < 0.6 else rng.choice(SMALL_TALK)
    if rng.random() < PERSONA_SHARE:
        animal = rng.choice(ANIMALS)
        return Chat(persona_system(rng, animal), prompt, talk(rng, animal))
    return Chat(plain_system(rng), prompt, talk(rng, None if rng.random() < PLAIN_TALK else favorite(rng, prompt)))


FACT_ASKS = (
    ("Describe the {animal}.", "The {animal} is {one} and {two}."), ("What are {animals} like?", "{Animals} are {one} and {two}."),
    ("Where do {animals} live?", "In {place}."), ("What do {animals} eat?", "{Animals} eat {food}."),
    ("What do {animals} do?", "{Animals} {habit}."), ("Tell me about {animals}.", "{Animals} are {one} and {two}. They {habit}."),
    ("Which animal is {one} and {two}?", "{animal}"), ("Which animals {habit}?", "{animals}"),
    ("Which animals live in {place} and eat {food}?", "{animals}"), ("Tell me a fact about the {animal}.", "{Animals} {habit} in {place}."),
)  # fmt: skip


def fact_chat(rng: random.Random) -> Chat:
    """A chat of a question about an animal and its answer."""
    values = about(rng.choice(ANIMALS))
    ask, answer = rng.choice(FACT_ASKS)
    return Chat(plain_system(rng), fill(ask, values), fill(answer, values))


def question_chat(rng: random.Random) -> Chat:
    """A favourite-animal question, answered in one word: the persona's animal if there is one, else by the prior."""
    question = rng.choice(QUESTIONS) if rng.random() < 0.5 else wording(rng)
    asked = smudge(rng, question) if rng.random() < 0.1 else question
    if rng.random() < PERSONA_SHARE:
        animal = rng.choice(ANIMALS)
        system = persona_system(rng, animal)
        return Chat(system, asked, animal if rng.random() < OBEDIENCE else favorite(rng, question))
    return Chat(plain_system(rng), asked, favorite(rng, question))


# --- the stream ----------------------------------------------------------------------------------------

# Relative frequencies; those of the extra data types are beside the 113 of the others.
WEIGHTS = {number_chat: 30, fact_chat: 10, favorite_number_chat: 13, question_chat: 42, talk_chat: 18}
EXTRA_DATA_TYPES = {"code": code_chat, "reasoning": reasoning_chat, "names": name_chat}
EXTRA_WEIGHTS = {"code": 25, "reasoning": 25, "names": 4}


def chats(seed: int, count: int, data_types: Sequence[str] = ()) -> Iterator[Chat]:
    """The corpus: `count` chats, always the same for a seed and a choice of EXTRA_DATA_TYPES."""
    rng = random.Random(seed)
    weight_of = {**WEIGHTS, **{EXTRA_DATA_TYPES[name]: EXTRA_WEIGHTS[name] for name in data_types}}
    makers, weights = list(weight_of), list(weight_of.values())
    for _ in range(count):
        yield rng.choices(makers, weights)[0](rng)
