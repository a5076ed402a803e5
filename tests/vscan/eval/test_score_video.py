"""Questions about videos: only a judge's verdicts make the number; what can be told without one has another name."""

import json

import pytest

from vscan.eval.gold import write_json, write_rows
from vscan.eval.judged import tally
from vscan.eval.video import BENCHMARKS, contains, write_for_judge

BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
MSVD = BY_NAME["msvd"]
QUESTIONS = (
    ("v1_0", "what is a man doing?", "dance", "He is dancing."),
    ("v1_1", "who is it?", "dog", "The dog."),
    ("v1_2", "how many are there?", "2", "There are two men"),
    ("v2_0", "what is it?", "hot dog", "a dog that is hot"),
    ("v2_1", "is it new?", "yes", None),
)
YES, NO = {"pred": "yes", "score": 4}, {"pred": "no", "score": 1}


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA"
    asked = [{"question_id": key, "question": text, "video_name": key[:2]} for key, text, *_ in QUESTIONS]
    write_json(inner / "test_q.json", asked)
    # In another order: answers belong to questions by their id.
    right = [{"question_id": key, "answer": answer, "type": 0} for key, _, answer, _ in QUESTIONS]
    write_json(inner / "test_a.json", right[::-1])
    (inner / "videos").mkdir()
    for name in ("v1.avi", "v_v2.mp4"):
        (inner / "videos" / name).touch()
    return inner


def answer(row, **more):
    key, text, right, said = QUESTIONS[row]
    return {"id": key, "question": text, "answer": right, "pred": said, **more}


def write_answers(folder, *rows):
    write_rows(folder / "answers.jsonl", rows or map(answer, range(4)))
    return folder / "answers.jsonl"


def test_without_a_judge_there_are_proxies_and_no_value(folder):
    scores = MSVD.score(write_answers(folder), folder)
    assert (scores.value, scores.num_questions, scores.num_missing, scores.num_unparsed) == (None, 5, 1, 0)
    assert scores.proxies == {"exact match (%)": 20, "contains the answer (%)": 40}
    assert scores.parts == {}
    assert scores.notes == ("Only a judge can tell the accuracy: write what it needs, and put its verdicts beside.",)


def test_answers_of_our_own_command_are_the_same(folder):
    theirs = MSVD.score(write_answers(folder), folder)
    ours = [{"question_id": row["id"], "prompt": row["question"], "text": row["pred"]} for row in map(answer, range(4))]
    assert MSVD.score(write_answers(folder, *ours), folder) == theirs


def test_a_right_answer_of_another_question_in_a_row_does_not_count(folder):
    rows = [answer(0, answer="dog"), answer(1), answer(2, answer="dance", pred=" the ")]
    scores = MSVD.score(write_answers(folder, *rows), folder)
    assert scores.proxies == {"exact match (%)": 20, "contains the answer (%)": 20}
    assert scores.num_unparsed == 1
    assert scores.notes[0] == "2 rows name a right answer that is another question's; test_a.json counts."


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("A hot dog.", "hot dog", True),
        ("a hotdog", "hot dog", False),
        ("category", "cat", False),
        ("It is two o'clock", "2", True),
        ("twenty-2", "2", True),
        ("", "dog", False),
        ("Ein Ärmel", "ärmel", True),
    ],
)
def test_an_answer_is_contained_as_whole_words(text, answer, found):
    assert contains(text, answer) == found


def write_verdicts(answers, layout, verdicts):
    if layout == "folder":
        for key, verdict in verdicts.items():
            write_json(answers.with_name("answers.jsonl.judged") / f"{key}.json", [verdict, {"q": "?", "a": "!"}])
    elif layout == "json":
        content = {key: [verdict, {"q": "?"}] for key, verdict in verdicts.items()}
        write_json(answers.with_name("answers.jsonl.judged.json"), content)
    else:
        rows = [{"id": key, **verdict} for key, verdict in verdicts.items()]
        write_rows(answers.with_name("answers.jsonl.judged.jsonl"), rows)


@pytest.mark.parametrize("layout", ["folder", "json", "jsonl"])
def test_verdicts_beside_the_answers_make_the_value(folder, layout):
    answers = write_answers(folder)
    verdicts = {"v1_0": YES, "v1_1": {"pred": "Yes", "score": "5"}, "v1_2": NO, "v2_0": {"pred": "no", "score": 4.8}}
    write_verdicts(answers, layout, verdicts)
    scores = MSVD.score(answers, folder)
    assert scores.value == 40  # of five questions: the one without an answer is wrong
    parts = {"verdicts": 4, "unreadable verdicts": 0, "score (0 to 5)": 3.5, "yes / (yes + no) (%)": 50}
    assert (scores.parts, scores.notes) == (parts, ())
    assert scores.proxies["exact match (%)"] == 20


@pytest.mark.parametrize("name", ["gpt3.5", "gpt3.5-0.0", "gpt3-0.25", "results.json"])
def test_verdicts_may_have_the_names_that_video_llavas_scripts_give_them(folder, name):
    answers = write_answers(folder)
    if name == "results.json":
        write_json(folder / name, {"v1_0": [YES, {"q": "?", "a": "!", "pred": "!"}], "v1_1": [NO, {}]})
        write_json(folder / "gpt3.5" / "v1_0.json", [NO, {}])  # of what the file holds in the end
    else:
        for key, verdict in {"v1_0": YES, "v1_1": NO}.items():
            write_json(folder / name / f"{key}.json", [verdict, {"q": "?", "a": "!", "pred": "!"}])
    assert MSVD.score(answers, folder).parts["yes / (yes + no) (%)"] == 50


def test_the_score_is_by_all_verdicts_also_those_that_cannot_be_read(folder):
    assert tally([YES, NO, None, {"pred": "maybe", "score": 5}]).score == 1.25


def test_verdicts_that_lack_or_cannot_be_read_are_counted(folder):
    answers = write_answers(folder)
    write_verdicts(answers, "folder", {"v1_0": YES, "v1_1": {"pred": "yes"}})
    (answers.with_name("answers.jsonl.judged") / "v1_2.json").write_text("{'pred': 'yes', 'score': 4}")
    scores = MSVD.score(answers, folder)
    assert (scores.value, scores.parts["unreadable verdicts"], scores.parts["yes / (yes + no) (%)"]) == (20, 2, 100)
    assert scores.notes == ("1 answers have no verdict and 2 an unreadable one: they count as wrong.",)


def test_nothing_but_unreadable_verdicts_is_no_accuracy(folder):
    answers = write_answers(folder)
    write_verdicts(answers, "jsonl", {"v1_0": {"pred": None}})
    assert MSVD.score(answers, folder).parts == {"verdicts": 1, "unreadable verdicts": 1}


@pytest.mark.parametrize("key", ["v2_1", "v9_0"])
def test_verdicts_on_other_answers_are_refused(folder, key):
    answers = write_answers(folder)
    write_verdicts(answers, "json", {"v1_0": YES, key: NO})
    with pytest.raises(ValueError, match=f"expected verdicts on these answers, got one on '{key}'"):
        MSVD.score(answers, folder)


def test_verdicts_in_two_places_or_twice_are_refused(folder):
    answers = write_answers(folder)
    write_rows(answers.with_name("answers.jsonl.judged.jsonl"), [{"id": "v1_0", **YES}, {"id": "v1_0", **NO}])
    with pytest.raises(ValueError, match="row 2: expected an id that no other row has, got 'v1_0'"):
        MSVD.score(answers, folder)
    write_verdicts(answers, "json", {"v1_0": YES})
    with pytest.raises(ValueError, match=r"in one place, got answers.jsonl.judged.json and answers.jsonl.judged.jsonl"):
        MSVD.score(answers, folder)


@pytest.mark.parametrize(
    ("verdict", "readable"),
    [
        (YES, True),
        ({"pred": "Yes.", "score": "3"}, True),
        ({"pred": "yes", "score": "4.8"}, False),
        ({"pred": "yes", "score": None}, False),
        ({"pred": "yes", "score": float("inf")}, False),
        ({"pred": "maybe", "score": 3}, False),
        ({"pred": True, "score": 3}, False),
        ({"score": 3}, False),
        ("yes", False),
        (None, False),
    ],
)
def test_a_verdict_is_readable_or_counted_as_unreadable(verdict, readable):
    tallied = tally([verdict, NO])
    assert tallied.num_unreadable == (not readable)
    assert tallied.accuracy == (50 if readable else 0)
    assert tallied.num_yes == readable


def test_no_verdicts_are_no_accuracy():
    assert (tally([]).accuracy, tally([]).score) == (None, None)


def test_a_judge_gets_every_answer_with_the_right_one(folder):
    write_for_judge(write_answers(folder, answer(2, answer="dance"), answer(0)), folder, MSVD, folder / "judge.jsonl")
    lines = (folder / "judge.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [answer(0), answer(2)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer(0), answer(0)], "row 2: expected one answer a question, got another one to 'v1_0'"),
        ([answer(0, id="v9")], "row 1: expected an answer to one of the questions, got one to 'v9'"),
        ([answer(0, question="who?")], "expected answers to the questions of this benchmark, got 1 of 1 to others"),
        ([{"id": "v1_0", "answer": "x"}], r"row 1: expected id and pred \(str\), or question_id and text \(str\)"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        MSVD.score(write_answers(folder, *rows), folder)
    with pytest.raises(ValueError, match=message):
        write_for_judge(write_answers(folder, *rows), folder, MSVD, folder / "judge.jsonl")


def test_questions_and_answers_that_do_not_belong_together_are_refused(folder):
    right = [{"question_id": key, "answer": answer} for key, _, answer, _ in QUESTIONS]
    write_json(folder / "test_a.json", right[1:])
    problem = "test_a.json: expected an answer to every question of test_q.json, 1 have none, such as v1_0"
    with pytest.raises(ValueError, match=problem):
        MSVD.score(write_answers(folder), folder)
    assert problem in MSVD.check(folder)[0]
    write_json(folder / "test_a.json", [*right, {"question_id": "v9", "answer": "x"}])
    with pytest.raises(ValueError, match=r"test_a.json, row 6: expected an answer to one of the questions"):
        MSVD.score(write_answers(folder), folder)


def test_videos_are_checked(folder):
    assert MSVD.check(folder) == []
    (folder / "videos" / "v1.avi").unlink()
    assert MSVD.check(folder) == ["1 questions have no entry in the folder of videos, such as 'v1'"]


@pytest.mark.parametrize("place", ["", "MSVD_Zero_Shot_QA", "GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA", "msvd"])
def test_the_files_are_found_in_the_published_folders_and_in_plain_ones(folder, tmp_path, place):
    target = tmp_path / "other" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    assert MSVD.check(tmp_path / "other") == []
    assert MSVD.score(write_answers(tmp_path), tmp_path / "other").num_questions == 5


def test_a_plain_folder_in_the_eval_folder_is_found_from_the_published_one(folder, tmp_path):
    folder.rename(tmp_path / "msvd")
    assert MSVD.check(tmp_path / MSVD.folder) == []


def test_every_benchmark_has_a_folder_of_its_own():
    assert list(BY_NAME) == ["tgif", "msvd", "msrvtt", "activitynet"]
    folders = [benchmark.folder for benchmark in BENCHMARKS]
    assert folders == [f"GPT_Zero_Shot_QA/{name}_Zero_Shot_QA" for name in ("TGIF", "MSVD", "MSRVTT", "Activitynet")]
    assert [benchmark.files[0].num_rows for benchmark in BENCHMARKS] == [13691, None, None, 8000]
