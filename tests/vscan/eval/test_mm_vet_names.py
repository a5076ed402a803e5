"""MM-Vet as LLaVA publishes it: questions share pictures, so that their ids name them, for the judge and its grades."""

import json

import pytest
from eval_folders import picture, write_json, write_rows

from scripts import convert_mmvet_for_eval
from vscan.eval.__main__ import main
from vscan.eval.benchmarks import BENCHMARKS
from vscan.eval.mm_vet import PROXY, name_of, score, write_for_judge, write_submission

# Question -> its picture: the second and the third share one, as in the published file.
PICTURES = ["v1_0.png", "v1_1.png", "v1_1.png", "v1_3.png", "v1_3.png"]
NAMES = [f"v1_{row}" for row in range(len(PICTURES))]
GRADES = [1.0, 0.5, 0.0, 0.2, 0.8]


@pytest.fixture
def folder(tmp_path):
    """The benchmark in LLaVA's layout, its first five questions."""
    folder = tmp_path / "mm-vet"
    rows = [
        {"question_id": row, "image": image, "text": f"What is {row}?", "category": "conv"}
        for row, image in enumerate(PICTURES)
    ]
    write_rows(folder / "llava-mm-vet.jsonl", rows)
    for image in PICTURES:
        picture(folder / "images" / image, 0)
    return folder


def add_gold(folder):
    gold = {
        name: {"imagename": image, "question": f"What is {row}?", "answer": f"word {row}", "capability": ["rec"]}
        for row, (name, image) in enumerate(zip(NAMES, PICTURES, strict=True))
    }
    write_json(folder / "mm-vet.json", gold)


def answers(folder):
    rows = [
        {"question_id": row, "prompt": f"What is {row}?", "text": f"word {row}"} for row in reversed(range(len(NAMES)))
    ]
    write_rows(folder / "answers" / "m.jsonl", rows)
    return folder / "answers" / "m.jsonl"


def grade_file(folder, name="m_gpt-4-32k-grade-1runs.json"):
    graded = zip(NAMES, GRADES, strict=True)
    content = {name: {"model": ["gpt-4-0613"], "content": [str(one)], "score": [one]} for name, one in graded}
    write_json(folder / "results" / name, content)
    return folder / "results" / name


@pytest.mark.parametrize("with_gold", [False, True])
def test_real_grades_are_counted_beside_answers_and_alone(folder, with_gold):
    if with_gold:
        add_gold(folder)
    file = grade_file(folder)
    for given in (answers(folder), file):
        found = score(given, folder)
        assert (found.value, found.num_questions, found.num_missing) == (pytest.approx(50), 5, 0)
        assert found.parts == ({"rec": pytest.approx(50)} if with_gold else {})
    assert score(answers(folder), folder).proxies == ({PROXY: 100} if with_gold else {})


@pytest.mark.parametrize("questions", [True, False])
@pytest.mark.parametrize("gold", [True, False])
def test_a_grade_file_alone_is_scored_whatever_lies_beside_it(folder, tmp_path, capsys, questions, gold):
    file = grade_file(folder)
    grade_file(folder, "m_gpt-4-0613-grade-1runs.json")
    grade_file(folder, "other_gpt-4-32k-grade-5runs.json")
    (folder / "results" / "m_gpt-4-cut-grade-1runs.json").write_text("{")
    write_json(folder / "results" / "m.json", dict.fromkeys(NAMES, "a text"))
    answers(folder)
    if gold:
        add_gold(folder)
    if not questions:
        (folder / "llava-mm-vet.jsonl").unlink()
    main(["mm_vet", "--answers", str(file), "--data", str(folder), "--output", str(tmp_path / "scores.json")])
    number = 5 if questions or gold else 218
    head = f"mm_vet: {100 * sum(GRADES) / number:.2f} (mean GPT-4 grade (%))\n  rows {number},"
    assert capsys.readouterr().out.startswith(head)


def test_every_writer_names_questions_alike(folder, tmp_path):
    add_gold(folder)
    file = answers(folder)
    write_submission(file, folder, tmp_path / "by_score.json")
    convert_mmvet_for_eval.main(["--src", str(file), "--dst", str(tmp_path / "by_script.json")])
    expected = {name: f"word {row}" for row, name in enumerate(NAMES)}
    for name in ("by_score.json", "by_script.json"):
        assert json.loads((tmp_path / name).read_text()) == expected
        assert score(tmp_path / name, folder).proxies == {PROXY: 100}
    write_for_judge(file, folder, tmp_path / "judge.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"], row["pred"]) for row in rows] == [
        (name, f"word {row}", f"word {row}") for row, name in enumerate(NAMES)
    ]
    assert BENCHMARKS["mm_vet"].check(folder) == []


def test_answers_join_the_right_answers_where_only_these_are_there(folder):
    add_gold(folder)
    (folder / "llava-mm-vet.jsonl").unlink()
    found = score(answers(folder), folder)
    assert (found.num_questions, found.num_missing, found.proxies) == (5, 0, {PROXY: 100})


@pytest.mark.parametrize(("question_id", "name"), [(0, "v1_0"), ("17", "v1_17"), ("v1_3", "v1_3"), ("v2_3", "v2_3")])
def test_an_id_may_be_the_name_itself(question_id, name):
    assert name_of(question_id) == name


def test_two_questions_of_one_name_are_refused(folder):
    rows = [{"question_id": row, "text": f"What is {row}?"} for row in (0, 1, 1)]
    write_rows(folder / "llava-mm-vet.jsonl", rows)
    with pytest.raises(ValueError, match="expected ids that differ, got more than one of 'v1_1'"):
        score(grade_file(folder), folder)
