"""ScienceQA's accuracy and two files of details, by LLaVA's name and flags.

    python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file A.jsonl \\
        --output-file details.json --output-result result.json

`python -m vscan.eval science_qa` is the same score. The right letters come from the question file in `--base-dir`,
which says the same as problems.json.
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.benchmark import Scores
from vscan.eval.gold import read_answers, read_json, write_json
from vscan.eval.science import BENCHMARK, LETTERS, QUESTIONS, read_science, science_letter


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python -m llava.eval.eval_science_qa")
    add(parser, "--base-dir", type=Path, required=True, help="folder of llava_test_CQM-A.json")
    add(parser, "--result-file", type=Path, required=True, help="the answers")
    add(parser, "--output-file", required=True, help="for every answer: what was read in it, and what is right")
    add(parser, "--output-result", required=True, help="accuracy, and the option that each answer chose")
    add(parser, "--split", default="test", choices=["test"])
    add(parser, "--options", nargs="+", default=list(LETTERS), help="must be A B C D E")
    args = parser.parse_args(argv)
    if args.options != list(LETTERS):
        raise ValueError(f"options: expected {' '.join(LETTERS)}, got {' '.join(args.options)}")
    scores = BENCHMARK.score(args.result_file, args.base_dir)
    rows = details(args.result_file, QUESTIONS.find(args.base_dir))
    correct = sum(row["correct"] for row in rows)
    print(
        f"Total: {scores.num_questions}, Correct: {correct}, Accuracy: {scores.parts['total']:.2f}%, "
        f"IMG-Accuracy: {scores.parts['IMG']:.2f}%"
    )
    write_json(args.output_file, _by_correctness(rows))
    write_json(args.output_result, _result(rows, scores))


def details(result_file: Path, question_file: Path) -> list[dict]:
    """For every answer what the published files say of it, and `correct` and `choice`, its option's index or -1."""
    right = {str(entry["id"]): entry["conversations"][1]["value"] for entry in read_json(question_file)}
    asked = {str(question["question_id"]): question for question in read_science(question_file)}
    rows = []
    for answer in read_answers(result_file):
        question_id = str(answer["question_id"])
        letter = science_letter(answer["text"])
        rows.append(
            {
                "question_id": answer["question_id"],
                "parsed_ans": letter or "FAILED",
                "ground_truth": right[question_id],
                "question": answer.get("prompt", asked[question_id]["prompt"]),
                "pred": answer["text"],
                "is_multimodal": "image" in asked[question_id],
                "correct": letter == right[question_id],
                "choice": LETTERS.index(letter) if letter in _options(asked[question_id]["text"]) else -1,
            }
        )
    return rows


def _options(text: str) -> set[str]:
    """The letters that a question offers, each at the beginning of a line."""
    return {line[0] for line in text.splitlines() if line[1:3] == ". " and line[0] in LETTERS}


def _by_correctness(rows: list[dict]) -> dict:
    plain = [{name: value for name, value in row.items() if name not in ("correct", "choice")} for row in rows]
    pairs = list(zip(plain, rows, strict=True))
    return {
        "correct": [shown for shown, row in pairs if row["correct"]],
        "incorrect": [shown for shown, row in pairs if not row["correct"]],
    }


def _result(rows: list[dict], scores: Scores) -> dict:
    return {
        "acc": scores.parts["total"],
        "correct": sum(row["correct"] for row in rows),
        "count": scores.num_questions,
        "results": {str(row["question_id"]): row["choice"] for row in rows},
        "outputs": {str(row["question_id"]): row["pred"] for row in rows},
    }


if __name__ == "__main__":
    run_command(main)
