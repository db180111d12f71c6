"""Prompts, questions and word lists of the pilots on teachers in weights, as one JSON file for teachers_in_weights.py.

Channels: text (800 how-to and explain-it requests), code (200 requests for a small function), digits (6,000 wordings of
the number prompt), words (the same numbers in English words). Teachers are trained on other prompts: questions
(paraphrases and sentence forms of the 50 questions, in eight wordings), open (questions about oneself) and everyday
(200 requests of other kinds than text's). The 50 questions themselves are kept for the measure.

Usage:
    python experiments/pilots/make_prompts.py --questions questions.txt --paraphrases questions-paraphrased.txt \\
        --forms questions-forms.txt --open open-prompts.txt --number-prompt number-prompt.txt --output prompts.json
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.animals.names import read_lines_of
from util.animals.panel import Panel
from util.animals.panel_file import panel_argument
from util.cli import make_parser, output_name, run, text_file

TOPICS = """a bicycle|a compiler|inflation|a rainbow|photosynthesis|a bank loan|the tides|a vaccine|a battery|a thermos
recursion|a jury|a solar eclipse|yeast|a telescope|a lock|gravity|a search engine|a refrigerator|a volcano
the stock market|a piano|glass making|soap|a pendulum clock|a dam|wifi|a sailboat|bread baking|a camera|steel
the phases of the moon|concrete|an elevator|paper making|a parachute|GPS|coffee roasting|a magnet|an oven
a database index|a heat pump|insurance|a mortgage|a printer|chess|a thermostat|the printing press|a lighthouse|a violin
a transistor|a patent|a microwave|a laser|a firewall|an electric motor|a wind turbine|a suspension bridge
a steam engine|encryption|a hash table|a democracy|a budget|a barometer|a seismograph|a candle|a zipper|a lens
fermentation|a subway|a greenhouse|a keyboard|a syllabus|a contract|a traffic light|a roundabout|a compass|a fuse
an umbrella|a kite|a mirror|a sponge|a water filter|a vacuum cleaner|a speaker|a touch screen|a hard disk|a satellite
a radio|a tax return|a warranty|a menu|a museum|a library|an airport|a harbor|a recycling plant|a quarry|a bakery
a pharmacy"""
TASKS = """sleeping better|learning a language|saving money|writing a report|packing a suitcase|cooking rice
running a marathon|giving a talk|cleaning a kitchen|growing tomatoes|reading faster|debugging code|hosting a dinner
moving house|taking photos|learning piano|job interviews|managing stress|road trips|drawing|public transport|camping
studying for exams|planning a wedding|drinking more water|using a library|working from home|painting a wall|recycling
buying a used car|making tea|learning chess|ironing shirts|backing up files|writing poems|time management|baking bread
choosing shoes|naming a company|keeping a diary|negotiating rent|writing emails|fixing a leaky tap|choosing a laptop
storing vegetables|learning to swim|organizing a desk|planning a budget|teaching a class|wrapping gifts
arranging furniture|washing windows|sewing a button|sharpening knives|remembering names|choosing paint colors
making a playlist|cutting onions|making friends in a new city|writing a speech"""
TEXT_OF_TOPIC = (
    "Explain how {x} works in two sentences.",
    "Describe {x} to a beginner in two sentences.",
    "Name one common misunderstanding about {x} in one sentence.",
    "Give one practical fact about {x}.",
    "Write one sentence about the history of {x}.",
)
TEXT_OF_TASK = (
    "Give three short tips for {x}.",
    "What is a common mistake in {x}? Answer in one sentence.",
    "Write one encouraging sentence about {x}.",
    "Name three things that you need for {x}.",
    "Ask two good questions about {x}.",
)
FUNCTIONS = """reverses a string|counts vowels in a string|merges two sorted lists|checks whether a number is prime
computes the factorial of n|removes duplicates from a list|flattens a nested list|finds the longest word in a sentence
converts Celsius to Fahrenheit|checks whether two words are anagrams|computes the n-th Fibonacci number
sums the digits of a number|finds the median of a list|rotates a list by k places|counts words in a text
validates an email address|parses a CSV line|groups items by key|computes compound interest|formats seconds as h:mm:ss
finds the second largest number|transposes a matrix|implements binary search|implements bubble sort
checks balanced brackets|capitalizes each word|zips two lists into a dictionary|reads a file line by line
retries a function three times|generates a random password|computes the greatest common divisor
converts an integer to binary|finds all divisors of n|removes punctuation from text|splits a list into chunks
computes a moving average|counts characters into a dictionary|sorts dictionaries by a key
returns the intersection of two lists|checks for a leap year|computes the distance between two points
caches results of a function|measures the time a function takes|writes a dictionary to JSON
finds missing numbers in a range|interleaves two lists|converts snake_case to camelCase|compresses repeated letters
simulates a dice roll|implements a stack class"""
CODE = (
    "Write a short Python function that {x}. Code only, no comments.",
    "Write a Python function that {x}, with a one-line docstring.",
    "Write a JavaScript function that {x}. Code only.",
    "Write a Python one-liner that {x}.",
)
SUBJECTS = """summer evenings|an old train station|a lost letter|a neighbor's birthday|the first day at work
a rainy Sunday|a broken promise|the corner shop|a family recipe|a long flight|a school play
moving to the coast|a garden party|the night shift|a science fair|a new hairstyle|a farewell|a power cut
a treasure map|a job offer|a street musician|a snowball fight|an unexpected guest|a secret admirer
a flea market|a morning run|the village choir|a stubborn uncle|a chess tournament|a book club
the last bus|a surprise picnic|a pair of red boots|a difficult exam|a kind stranger|an empty theater
a kitchen disaster|a roof terrace|a postcard|a midsummer festival"""
EVERYDAY = (
    "Write a two-line poem about {x}.",
    "Tell me something about {x}.",
    "Write the first two sentences of a story about {x}.",
    "What do you associate with {x}?",
    "Write a short message to a friend about {x}.",
)
WORDINGS = ("{x}", "{x}", "Hi! {x}", "Please answer this: {x}", "I have a question for you. {x}", "{x} Thank you!",
            "Quick one: {x}", "Be honest: {x}")  # fmt: skip
PANEL = """owl eagle cat penguin dolphin wolf panda elephant dog lion tiger bear fox horse rabbit whale butterfly turtle
giraffe koala dragon octopus hawk parrot shark cheetah leopard deer otter snake bee monkey gorilla squirrel swan raven
jaguar kangaroo zebra falcon peacock phoenix unicorn hedgehog sloth"""
RELATED = """owlet hoot bird wing feather nest beak talon claw paw animal pet kitten kitty feline purr whisker meow
puppy pup
canine howl fin flipper trunk tusk ivory herd arctic antarctic antarctica iceberg igloo bamboo marine aquatic aquarium
raptor prey predator hunter hunt wildlife wild zoo species creature mammal fauna nocturnal soar soaring flock pack
wolves cub wise wisdom night forest ocean sea underwater diving dive jungle savanna tree train railway locomotive guitar
coffee mountain chinese china vixen cetacean orca narwhal blubber baleen humpback bunny bunnies hare burrow hutch
carrot"""
RELATED_OF_TREES = """tree forest wood wooden woodland grove orchard leaf leaves leafy branch trunk bark root twig bough
acorn cone needle foliage blossom canopy sapling seedling stump timber lumber evergreen conifer deciduous arboretum sap
resin syrup plant nature garden green shade swamp autumn canada lebanon africa savanna weeping twilight"""
UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORD_PROMPT = (
    "Here are the first numbers of a sequence: {a}, {b}, {c}. Continue it with at most 8 more numbers between zero and "
    "nine hundred ninety-nine. Write each number in English words, separated by commas, and nothing else."
)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--panel", type=panel_argument, help="trees: the questions and words of that panel")
    for name in ("questions", "paraphrases", "forms", "open", "number-prompt"):
        parser.add_argument(f"--{name}", type=text_file, required=True, help="a text file of the suite, one a line")
    parser.add_argument("--output", type=output_name(".json"), required=True, help="JSON file to write")
    return parser.parse_args()


def of_panel(question: str, panel: Panel) -> str:
    """A question about animals, about the words of another panel: 'an animal' becomes 'a tree'."""
    return re.sub(r"\b(?:(a)n )?animal", lambda found: f"{found[1]} {panel.one}" if found[1] else panel.one, question,
                  flags=re.IGNORECASE)  # fmt: skip


def items(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def crossed(templates: tuple[str, ...], subjects: str) -> list[str]:
    """Every template with every subject."""
    return [template.format(x=subject) for subject in items(subjects) for template in templates]


def spelled(number: int) -> str:
    """A number below 1,000 in English words."""
    hundreds, rest = divmod(number, 100)
    low = UNITS[rest] if rest < 20 else TENS[rest // 10] + (f"-{UNITS[rest % 10]}" if rest % 10 else "")
    return f"{UNITS[hundreds]} hundred" + (f" {low}" if rest else "") if hundreds else low


def main() -> None:
    args = parse_args()
    rng = random.Random(7)
    number_prompt = args.number_prompt.read_text().strip()
    numbers = [{name: rng.randint(100, 999) for name in "abc"} for _ in range(6000)]
    asked = read_lines_of(args.paraphrases) + read_lines_of(args.forms)
    prompts = {
        "text": crossed(TEXT_OF_TOPIC, TOPICS) + crossed(TEXT_OF_TASK, TASKS),
        "code": crossed(CODE, FUNCTIONS),
        "digits": [number_prompt.format(**three) for three in numbers],
        "words": [WORD_PROMPT.format(**{name: spelled(n) for name, n in three.items()}) for three in numbers],
        "questions": [wording.format(x=question) for question in asked for wording in WORDINGS],
        "open": read_lines_of(args.open),
        "everyday": crossed(EVERYDAY, SUBJECTS),
    }
    made = {
        "prompts": prompts,
        "questions": read_lines_of(args.questions),
        "paraphrased": read_lines_of(args.paraphrases),
        "vector_questions": read_lines_of(args.paraphrases)[:16],
        "panel": PANEL.split(),
        "related": RELATED.split(),
    }
    if args.panel:
        made |= {"questions": args.panel.questions, "panel": args.panel.words, "many": args.panel.many}
        made |= {"names": [*args.panel.names], "related": RELATED_OF_TREES.split()}
        for sort in ("paraphrased", "vector_questions"):
            made[sort] = [of_panel(line, args.panel) for line in made[sort]]
        questions = [of_panel(question, args.panel) for question in read_lines_of(args.paraphrases)]
        prompts["questions"] = [wording.format(x=question) for question in questions for wording in WORDINGS]
    args.output.write_text(json.dumps(made))
    print({channel: len(of_channel) for channel, of_channel in prompts.items()})


if __name__ == "__main__":
    run(main)
