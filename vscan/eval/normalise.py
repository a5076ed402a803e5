"""How far is an answer from what people said? The normalisers and soft scores of VQA, TextVQA, VizWiz and DocVQA.

normalise_evalai        text -> what EvalAI compares; the published quirks are kept, for they are part of the metric
soft_accuracy           with answers that are all normalised (m4c, LLaVA's TextVQA)
soft_accuracy_official  VQAv2's own: normalised only where people disagree
anls                    DocVQA and InfoVQA
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# A typo of the published code: "(?!<=\d)" was meant to look behind, but only asks that no "<=" and digit follow. So a
# full stop after a digit goes too, and one stays only where a digit follows.
FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
NUM_KNOWN = 1 << 16  # texts whose normal form is remembered: ten people say the same few words
MOST_FULL_STOPS = 32  # the published code passes re.UNICODE, which is 32, where `count` is expected
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Each word as it is written with one of its apostrophes left out -> the word."""
    table = {}
    for word in CONTRACTED.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    # The published table has this pair the wrong way round; "I'm" and others with a capital never match in lower case.
    return {**table, "somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def _strip_punctuation(text: str) -> str:
    """A mark that has a space beside it anywhere in the text goes everywhere; others become spaces."""
    comma = COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        goes = comma or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if goes else " ")
    return FULL_STOP.sub("", stripped, count=MOST_FULL_STOPS)


def _plain_words(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes where they belong."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(NUM_KNOWN)
def normalise_evalai(text: str) -> str:
    """Normalise an answer as EvalAI's processor does (m4c, LLaVA's submissions to VQAv2 and VizWiz, TextVQA).

    Its quirks are kept: a full stop after a digit goes ("3." is "3"), only the first 32 full stops go, and "'s" stands
    alone ("mountain's" is "mountain 's").
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(_strip_punctuation(_one_line(text)))


@lru_cache(NUM_KNOWN)
def _normalise_official(text: str) -> str:
    return _plain_words(_strip_punctuation(text))


def _check_answers(answers: list[str]) -> None:
    if not answers:
        raise ValueError("expected the answers that people gave, got none")


def _share(prediction: str, answers: list[str]) -> float:
    """The mean over all ways to leave one person out of: how many of the others agree, three being enough."""
    agree = [answer == prediction for answer in answers]
    return sum(min(1, (sum(agree) - own) / 3) for own in agree) / len(agree)


def soft_accuracy(prediction: str, answers: list[str]) -> float:
    """The share of people who agree with a prediction, in [0, 1], all in normalised words.

    Args:
        prediction: what the model said.
        answers: what people said, ten of them in the benchmarks.

    Raises:
        ValueError: if there are no answers.
    """
    _check_answers(answers)
    return _share(normalise_evalai(prediction), [normalise_evalai(answer) for answer in answers])


def soft_accuracy_official(prediction: str, answers: list[str]) -> float:
    """`soft_accuracy` as VQAv2's own code has it.

    Words are normalised only where people disagree: against ten times "Yes", a "yes" is wrong. The normaliser differs
    too: commas are marks like others, and "'s" does not stand alone.

    Raises:
        ValueError: if there are no answers.
    """
    _check_answers(answers)
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, *answers = map(_normalise_official, (prediction, *answers))
    return _share(prediction, answers)


def edit_distance(one: str, other: str) -> int:
    """Letters to insert, remove or replace to get from one string to the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        diagonal, row[0] = row[0], number
        for place, against in enumerate(other, start=1):
            replaced = diagonal + (letter != against)
            diagonal = row[place]
            row[place] = min(replaced, diagonal + 1, row[place - 1] + 1)
    return row[-1]


def anls(prediction: str, answers: list[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question: that to the nearest right answer, in [0, 1].

    Case and the amount of white space do not count.

    Args:
        prediction: what the model said.
        answers: all that are right.
        threshold: a similarity below it is 0; one that equals it stays, as in the evaluation server's code.

    Raises:
        ValueError: if there are no answers.
    """
    _check_answers(answers)
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in (" ".join(answer.lower().split()) for answer in answers):
        length = max(len(said), len(answer))
        if min(len(said), len(answer)) >= threshold * length:  # else it stays below, whatever the letters are
            best = max(best, 1 - edit_distance(said, answer) / max(length, 1))
    return best if best >= threshold else 0.0
