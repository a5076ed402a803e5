"""MM-Vet: grades are summed, never made up; without them there is a proxy that says what it is."""

import json

import pytest

from vscan.eval.mm_vet import (
    BENCHMARK,
    PROXY,
    find_grades,
    proxy,
    read_grades,
    score,
    write_for_judge,
    write_submission,
)

QUESTIONS = ["What is x?", "Which two?", "Who?"]
RIGHT = ["-1<AND>-5", "cat<OR>small cat<AND>dog", "a man"]
SAID = ["It is -1 or 5.", "A dog and a small cat", "Nobody"]


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"question_id": row, "image": f"v1_{row}.png", "text": text, "category": "conv"}
        for row, text in enumerate(QUESTIONS)
    ]
    write(tmp_path / "llava-mm-vet.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answers(folder, rows=(0, 1, 2), name="answers/m.jsonl"):
    lines = [{"question_id": row, "prompt": QUESTIONS[row], "text": SAID[row]} for row in rows]
    return write(folder / name, "".join(json.dumps(line) + "\n" for line in lines))


def add_gold(folder):
    skills = [["rec", "math"], ["rec"], ["know"]]
    gold = {
        f"v1_{row}": {"imagename": f"v1_{row}.png", "question": text, "answer": RIGHT[row], "capability": skills[row]}
        for row, text in enumerate(QUESTIONS)
    }
    write(folder / "mm-vet.json", gold)


def grades(scores):
    return {
        f"v1_{row}": {"model": ["gpt-4-0613"], "content": [str(each)], "score": each} for row, each in enumerate(scores)
    }


@pytest.mark.parametrize("scores", [[[0.5], [1.0], [0.0]], [0.5, 1, 0]])
def test_grades_are_a_list_or_a_number(folder, scores):
    file = write(folder / "results" / "m_gpt-4-32k-grade-1runs.json", grades(scores))
    found = score(answers(folder), folder)
    assert found.value == pytest.approx(50)
    assert found.notes == ("grades: m_gpt-4-32k-grade-1runs.json, 1 run(s) of the judge",)
    direct = score(file, folder)
    assert (direct.value, direct.num_questions, direct.num_missing, direct.proxies) == (found.value, 3, 0, {})


def test_grades_are_counted_with_either_file_of_questions(folder):
    add_gold(folder)
    (folder / "llava-mm-vet.jsonl").unlink()
    file = write(folder / "results" / "m_gpt-4-32k-grade-1runs.json", grades([[0.5], [0.4]]))
    found = score(file, folder)
    assert (found.value, found.num_questions, found.num_missing) == (pytest.approx(30), 3, 1)
    (folder / "mm-vet.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected llava-mm-vet.jsonl in "):
        score(answers(folder), folder)


def test_grades_alone_are_of_the_published_questions(folder):
    (folder / "llava-mm-vet.jsonl").unlink()
    file = write(folder / "m_gpt-4-32k-grade-1runs.json", grades([0.5] * 109))
    found = score(file, folder)
    assert (found.value, found.num_questions, found.num_missing) == (pytest.approx(25), 218, 109)
    assert "no file of questions is here: the grades are taken as those of v1_0 to v1_217" in found.notes
    write(file, grades([0.5] * 219))
    with pytest.raises(ValueError, match="expected grades of 'v1_0' to 'v1_217', got one of 'v1_218'"):
        score(file, folder)


@pytest.mark.parametrize("judge", ["gpt-4-32k", "gpt-4-0613", "gpt-4-1106-preview", "gpt-4.1"])
def test_grades_are_those_of_the_same_model(folder, judge):
    write(folder / "answers" / "m_lora_gpt-4-32k-grade-1runs.json", grades([0, 0, 0]))
    write(folder / "results" / "m_gpt-4-32k_lora-grade-1runs.txt", grades([0, 0, 0]))
    assert find_grades(answers(folder), folder) is None
    file = write(folder / "results" / f"m_{judge}-grade-1runs.json", grades([1, 1, 1]))
    assert find_grades(answers(folder), folder) == file


def test_runs_of_the_judge_are_averaged_and_skills_told_apart(folder):
    add_gold(folder)
    write(folder / "answers" / "m_gpt-4-32k-grade-2runs.json", grades([[0.5, 0.3], [1.0, 1.0], [0.0, 0.1]]))
    found = score(answers(folder), folder)
    assert found.value == pytest.approx(100 * (0.4 + 1 + 0.05) / 3)
    assert found.parts == pytest.approx({"know": 5, "math": 40, "rec": 70})


def test_a_question_without_a_grade_counts_as_zero_and_is_said(folder):
    write(folder / "answers" / "m_gpt-4-32k-grade-1runs.json", grades([1, 1]))
    found = score(answers(folder), folder)
    assert found.value == pytest.approx(200 / 3)
    assert "1 questions have no grade and count as 0" in found.notes


def test_without_grades_there_is_no_score_but_a_proxy_by_another_name(folder):
    found = score(answers(folder, rows=[0, 1]), folder)
    assert (found.value, found.proxies, found.num_missing) == (None, {}, 1)
    add_gold(folder)
    found = score(answers(folder, rows=[0, 1]), folder)
    assert found.value is None
    assert found.proxies == {PROXY: pytest.approx(100 * (0.5 + 1 + 0) / 3)}


@pytest.mark.parametrize(
    ("text", "right", "share"),
    [
        ("it is -1", "-1<AND>-5", 0.5),
        ("-1 and -5", "-1<AND>-5", 1),
        ("-15", "-1<AND>-5", 0),  # words, not letters
        ("hotdogs", "dog<OR>hot", 0),
        ("hotdog", "dog", 0),
        ("Small Cat", "cat<OR>dog", 1),
        ("dog", "cat<AND>mouse<OR>dog<AND>bird", 0.5),
        ("anything", "<AND>", 0),
    ],
)
def test_the_proxy_is_the_best_share_of_parts(text, right, share):
    assert proxy(text, right) == share


def test_what_the_evaluator_and_a_judge_need(folder):
    write_submission(answers(folder, rows=[1, 0]), folder, folder / "m.json")
    assert json.loads((folder / "m.json").read_text()) == {"v1_0": SAID[0], "v1_1": SAID[1]}
    assert score(folder / "m.json", folder).num_missing == 1  # that file can be scored, too
    with pytest.raises(FileNotFoundError, match=r"expected mm-vet.json in "):
        write_for_judge(answers(folder), folder, folder / "m.judge.jsonl")
    add_gold(folder)
    write_for_judge(answers(folder, rows=[2]), folder, folder / "m.judge.jsonl")
    row = {"id": "v1_2", "question": "Who?", "answer": "a man", "pred": "Nobody"}
    assert json.loads((folder / "m.judge.jsonl").read_text()) == row
    write(folder / "mm-vet.json", {"v1_0": json.loads((folder / "mm-vet.json").read_text())["v1_0"]})
    with pytest.raises(ValueError, match=r"mm-vet.json: expected an entry of 'v1_2', got none"):
        write_for_judge(answers(folder, rows=[2]), folder, folder / "m.judge.jsonl")


def test_grades_of_others_and_broken_ones_are_refused(folder):
    file = write(folder / "answers" / "m_gpt-4-32k-grade-1runs.json", grades([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="expected grades of 'v1_0' to 'v1_2', got one of 'v1_3'"):
        score(answers(folder), folder)
    with pytest.raises(ValueError, match=r"expected an object from names to grades, got \[1\]"):
        read_grades(write(file, [1]))
    for content in ({"v1_0": {"score": [1.5]}}, {"v1_0": {"score": "1"}}, {"v1_0": {"score": []}}):
        with pytest.raises(ValueError, match=r"expected a score in \[0, 1\] or a list of them"):
            read_grades(write(file, content))
    write(folder / "answers" / "m_gpt-4-grade-1runs.json", grades([1, 1, 1]))
    with pytest.raises(ValueError, match=r"expected one grade file, got .*, .*; give the one that counts"):
        score(answers(folder), folder)
    with pytest.raises(ValueError, match="expected texts of the questions' names, got one of 'v2_0'"):
        score(write(folder / "r.json", {"v2_0": "x"}), folder)
    with pytest.raises(ValueError, match="row 3: expected one answer a question"):
        score(answers(folder, rows=[0, 1, 1]), folder)


def test_the_two_files_must_be_of_the_same_questions(folder):
    assert BENCHMARK.check(folder) == []
    add_gold(folder)
    assert BENCHMARK.check(folder) == []
    gold = json.loads((folder / "mm-vet.json").read_text())
    write(folder / "mm-vet.json", {**gold, "v1_9": gold["v1_0"]})
    assert BENCHMARK.check(folder) == ["1 names are not in both files, the first is 'v1_9'"]
