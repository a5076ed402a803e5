"""The normalisers of VQA: published values, published quirks, and what holds of any text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscan.eval.normalise import (
    CONTRACTIONS,
    anls,
    edit_distance,
    normalise_evalai,
    soft_accuracy,
    soft_accuracy_official,
)

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "vizwiz"
words = st.text(alphabet="abc .,'?!-\n3", max_size=12)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("two", "2"),
        ("a building", "building"),
        ("snow, mountain", "snow mountain"),
        ("isnt", "isn't"),
        ("the two mountain's \t \n   ", "2 mountain 's"),
        ("U.S.A.", "usa"),
        ("t-shirt", "t shirt"),
        ("$5.00", "$5.00"),
        ("10:30", "10:30"),
        ("a.b", "ab"),
        ("1,000", "1000"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("An", ""),
        ("", ""),
        ("left/right", "left right"),
        ("left / right", "left right"),
        ("a/b /c", "ab c"),
        ("Él come Ñandú.", "él come ñandú"),
        ("红色。", "红色。"),
    ],
)
def test_words_are_normalised_as_published(text, normalised):
    assert normalise_evalai(text) == normalised


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("3.", "3"),  # the look-behind that was meant would keep it
        ("." * 40 + "x", "." * 8 + "x"),  # re.UNICODE in the place of count
        ("somebody'd", "somebodyd"),
        ("im", "im"),  # "Im" is in the published table, which only sees lower case
        ("lets", "lets"),
        ("shes", "shes"),
    ],
)
def test_published_quirks_are_kept(text, normalised):
    assert normalise_evalai(text) == normalised


@pytest.mark.parametrize(
    ("without", "word"),
    [
        ("dont", "don't"),
        ("couldntve", None),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("'owsat", None),
        ("'ow'sat", "'ow's'at"),
        ("ow's'at", "'ow's'at"),
        ("y'allll", "y'all'll"),
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
        ("whats", "what's"),
        ("its", None),
        ("well", None),
        ("cant", "can't"),
    ],
)
def test_a_word_gets_the_one_apostrophe_that_it_lacks(without, word):
    assert CONTRACTIONS.get(without) == word


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_published_answers_become_the_published_upload():
    lines = (PUBLISHED / "answers" / "llava-v1.5-13b.jsonl").read_text().splitlines()
    uploaded = json.loads((PUBLISHED / "answers_upload" / "llava-v1.5-13b.json").read_text())
    assert len(lines) == len(uploaded) == 8000
    ours = [normalise_evalai(json.loads(line)["text"]) for line in lines]
    assert ours == [entry["answer"] for entry in uploaded]


@given(st.text(max_size=40))
def test_any_text_becomes_one_line_of_single_spaces(text):
    normalised = normalise_evalai(text)
    assert normalised == " ".join(normalised.split())
    assert not {"a", "an", "the", "two"} & set(normalised.split())


@given(st.lists(st.sampled_from(["red", "two", "the", "Dont", "mountain", "7"]), max_size=6))
def test_plain_words_stay_as_they_are_the_second_time(chosen):
    once = normalise_evalai(" ".join(chosen))
    assert normalise_evalai(once) == once


def test_three_others_who_agree_make_an_answer_right():
    people = ["Yes."] * 4 + ["no"] * 3 + ["maybe", "dont know", "2"]
    assert soft_accuracy("yes", people) == pytest.approx(1)
    assert soft_accuracy("No", people) == pytest.approx((7 * 1 + 3 * 2 / 3) / 10)
    assert soft_accuracy("maybe", people) == pytest.approx((9 * 1 / 3) / 10)
    assert soft_accuracy("two", people) == pytest.approx(0.3)
    assert soft_accuracy("don't know", people) == pytest.approx(0.3)
    assert soft_accuracy("perhaps", people) == 0


def test_the_official_code_normalises_only_where_people_disagree():
    assert soft_accuracy("yes", ["Yes"] * 10) == 1
    assert soft_accuracy_official("yes", ["Yes"] * 10) == 0
    assert soft_accuracy_official("Yes\n", ["Yes"] * 10) == 1
    assert soft_accuracy_official("yes", ["Yes"] * 9 + ["no"]) == 1
    # Without the words' own rules: a comma inside a number takes all marks away, elsewhere it becomes a space.
    people = ["red blue"] * 9 + ["red"]
    assert (soft_accuracy("red,blue", people), soft_accuracy_official("red,blue", people)) == (0, 1)
    people = ["1000-2000"] * 9 + ["red"]
    assert soft_accuracy_official("1,000-2000", people) == 0
    assert soft_accuracy_official("1,0002000", ["1,000-2000"] * 9 + ["red"]) == 1


@pytest.mark.parametrize("measure", [soft_accuracy, soft_accuracy_official, anls])
def test_a_question_without_answers_is_refused(measure):
    with pytest.raises(ValueError, match="expected the answers that people gave, got none"):
        measure("yes", [])


@given(words, st.lists(words, min_size=1, max_size=10))
def test_scores_lie_between_0_and_1(text, people):
    for measure in (soft_accuracy, soft_accuracy_official, anls):
        assert 0 <= measure(text, people) <= 1
        assert measure(text, [text] * 10) == 1


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("é", "e", 1)],
)
def test_distances_that_can_be_counted_by_hand(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


@given(words, words, words)
def test_a_distance_is_one(one, other, third):
    distance = edit_distance(one, other)
    assert (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    assert distance <= edit_distance(one, third) + edit_distance(third, other)


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Coca  Cola\n", ["coca cola"], 1),
        ("coca cola", ["pepsi", "Coca-Cola"], 8 / 9),
        ("abcd", ["abxy"], 0.5),  # one half stays, as in the server's code
        ("abc", ["xyc"], 0),  # one third does not
        ("", ["abc"], 0),
        ("", [""], 1),
        ("$5.00.", ["$5.00"], 5 / 6),
    ],
)
def test_anls_is_that_to_the_nearest_answer(text, answers, expected):
    assert anls(text, answers) == pytest.approx(expected)


def test_anls_has_a_threshold():
    assert anls("abc", ["xyc"], threshold=0.3) == pytest.approx(1 / 3)


def test_scorers_need_no_torch():
    modules = "normalise, gqa, vqav2, textvqa, seed_bench, refcoco_scores, video, document"
    code = f"import sys; from vscan.eval import {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
