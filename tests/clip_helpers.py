"""What tests of commands about clips share: question files, the flags of our loader and of the published command."""

import json

REDUCED = ["--visual_token_num", "24", "--layer_list", "[4]", "--image_token_list", "[8]"]


def write_questions(folder, rows):
    asked = [{"video_name": name, "question": text, "question_id": key} for key, name, text in rows]
    right = [{"answer": f"to {key}", "type": 0, "question_id": key} for key, *_ in rows]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(right[::-1]))


def change(file, spoil):
    """Rewrite a JSON list; `spoil` changes it in place."""
    entries = json.loads(file.read_text())
    spoil(entries)
    file.write_text(json.dumps(entries))


def words(given, more):
    given = {**given, "--max_new_tokens": 4, "--num-workers": 0, "--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + list(more)


def loader(checkpoint, data, *more, answers="a.jsonl"):
    given = {"--model-path": checkpoint, "--question-file": data / "test_q.json", "--video-folder": data / "videos"}
    given |= {"--truth-file": data / "test_a.json", "--answers-file": data / answers}
    return words(given, more)


def published(checkpoint, data, *more, name="1_0"):
    given = {"--model_path": checkpoint, "--cache_dir": data, "--video_dir": data / "videos"}
    given |= {"--gt_file_question": data / "test_q.json", "--gt_file_answers": data / "test_a.json"}
    return words({**given, "--output_dir": data / "out", "--output_name": name}, more)
