"""Every benchmark from its folder to the table: questions in, answers of a small model, scores as counted by hand.

The model's answers are one word long and out of a few words, so that they can be right. A first run says what it
answers; then a folder is written in which these rows are right and those are not, and the score is known.
"""

import json
from pathlib import Path

import eval_folders
import pytest
import sentencepiece
from script_helpers import bash, run_here, script_of
from two_processes import STARTS

from llava.eval import eval_science_qa, eval_textvqa, model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from scripts import convert_document_questions
from vscan.eval.__main__ import main as evaluate

pytestmark = pytest.mark.usefixtures("weights_once")

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "playground" / "models" / "tiny-llava"
LETTERS = ("<0x41>", "<0x42>", "<0x44>")
WORDS = ("▁red", "▁0", "▁1", "▁blue", "▁green")
VOCABULARY = {"letters": LETTERS, "yes or no": ("▁yes", "▁no"), "words": WORDS, "to an end": (*WORDS, "</s>")}
REDUCED = ["--visual_token_num", "64", "--layer_list", "[4]", "--image_token_list", "[32]"]


def build_model(folder: Path, pieces: tuple[str, ...]) -> Path:
    """The embedded model, which can only say some pieces of its vocabulary."""
    folder.mkdir(parents=True)
    for file in EMBEDDED.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    tokenizer = sentencepiece.SentencePieceProcessor(str(EMBEDDED / "tokenizer.model"))
    allowed = {tokenizer.piece_to_id(piece) for piece in pieces}
    assert len(allowed) == len(pieces)
    config = json.loads((EMBEDDED / "generation_config.json").read_text())
    config["suppress_tokens"] = [token for token in range(tokenizer.get_piece_size()) if token not in allowed]
    (folder / "generation_config.json").write_text(json.dumps({**config, "min_new_tokens": 1}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints by what they can say."""
    folder = tmp_path_factory.mktemp("models")
    return {name: build_model(folder / name, pieces) for name, pieces in VOCABULARY.items()}


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def answer(main, model: Path, question_file: Path, images: Path | None, output: Path, *more: str) -> list[str]:
    """Answer a question file with one word each; returns the words."""
    flags = {"--model-path": model, "--question-file": question_file, "--answers-file": output}
    flags |= {"--temperature": 0, "--max_new_tokens": 1, "--num-workers": 0, "--device": "cpu", "--batch-size": 4}
    flags |= {} if images is None else {"--image-folder": images}
    main([*(str(part) for pair in flags.items() for part in pair), *more])
    return [row["text"] for row in read(output)]


def score(name: str, answers: Path, folder: Path) -> dict:
    """What the command writes."""
    evaluate([name, "--answers", str(answers), "--data", str(folder)])
    name = "scores.json" if answers.name == "answers.jsonl" else f"{answers.stem}.scores.json"
    return json.loads((answers.parent / name).read_text())


def counts(scores: dict) -> tuple:
    return scores["num_questions"], scores["num_missing"], scores["num_unparsed"]


def test_gqa(models, tmp_path):
    folder, answers = tmp_path / "gqa", tmp_path / "out" / "a.jsonl"
    eval_folders.gqa(folder, ["?"] * 4)
    files = (folder / "llava_gqa_testdev_balanced.jsonl", folder / "images", answers)
    said = answer(model_vqa_loader.main, models["words"], *files, *REDUCED)
    eval_folders.gqa(folder, [*said[:3], "wrong"])
    scores = score("gqa", answers, folder)
    assert scores["value"] == 75
    assert (scores["parts"]["binary"], scores["parts"]["open"]) == (100, 50)
    assert counts(scores) == (4, 0, 0)


def test_vqav2_is_for_the_server(models, tmp_path):
    folder, answers = tmp_path / "vqav2", tmp_path / "out" / "a.jsonl"
    eval_folders.vqav2(folder, ["?"] * 3)
    files = (folder / "llava_vqav2_mscoco_test-dev2015.jsonl", folder / "test2015", answers)
    said = answer(model_vqa_loader.main, models["words"], *files, *REDUCED)
    scores = score("vqav2", answers, folder)
    assert scores["value"] is None
    assert counts(scores) == (3, 0, 0)
    upload = json.loads((answers.parent / "a.upload.json").read_text())
    words = [{"question_id": 1000 + row, "answer": text} for row, text in enumerate(said)]
    assert upload == [{"question_id": 999, "answer": ""}, *words]


def test_vizwiz_is_for_the_server(models, tmp_path):
    folder, answers = tmp_path / "vizwiz", tmp_path / "out" / "a.jsonl"
    eval_folders.vizwiz(folder, ["?"] * 2)
    files = (folder / "llava_test.jsonl", folder / "test", answers)
    said = answer(model_vqa_loader.main, models["words"], *files)
    scores = score("vizwiz", answers, folder)
    assert scores["value"] is None
    assert counts(scores) == (2, 0, 0)
    upload = json.loads((answers.parent / "a.upload.json").read_text())
    assert upload == [{"image": f"VizWiz_test_{row:08d}.jpg", "answer": text} for row, text in enumerate(said)]


def test_science_qa(models, tmp_path, capsys):
    folder, answers = tmp_path / "scienceqa", tmp_path / "out" / "a.jsonl"
    eval_folders.science_qa(folder, ["A"] * 4)
    files = (folder / "llava_test_CQM-A.json", folder / "images" / "test", answers)
    said = answer(model_vqa_science.main, models["letters"], *files, "--single-pred-prompt", *REDUCED)
    eval_folders.science_qa(folder, [*said[:2], other(said[2]), said[3]])
    scores = score("science_qa", answers, folder)
    assert scores["value"] == pytest.approx(200 / 3)  # two of three with a picture
    assert scores["parts"]["total"] == 75
    assert counts(scores) == (4, 0, 0)

    details, result = tmp_path / "details.json", tmp_path / "result.json"
    flags = ["--base-dir", str(folder), "--result-file", str(answers)]
    eval_science_qa.main([*flags, "--output-file", str(details), "--output_result", str(result)])
    assert "Total: 4, Correct: 3, Accuracy: 75.00%, IMG-Accuracy: 66.67%" in capsys.readouterr().out
    written = json.loads(result.read_text())
    assert (written["correct"], written["count"], written["outputs"]["4"]) == (3, 4, said[0])
    assert written["results"] == {str(4 + row): "ABCD".index(letter) for row, letter in enumerate(said)}
    written = json.loads(details.read_text())
    assert [row["question_id"] for row in written["incorrect"]] == ["6"]
    assert [row["is_multimodal"] for row in written["correct"]] == [True, True, False]


def other(letter: str) -> str:
    return "B" if letter == "A" else "A"


def test_textvqa(models, tmp_path, capsys):
    folder, answers = tmp_path / "textvqa", tmp_path / "out" / "a.jsonl"
    eval_folders.textvqa(folder, [["?"] * 10] * 4)
    files = (folder / "llava_textvqa_val_v051_ocr.jsonl", folder / "train_images", answers)
    said = answer(model_vqa_loader.main, models["words"], *files, *REDUCED)
    agree = (10, 3, 1, 0)  # of ten people
    people = [[text] * number + ["wrong"] * (10 - number) for text, number in zip(said, agree, strict=True)]
    eval_folders.textvqa(folder, people)
    scores = score("textvqa", answers, folder)
    # Each person is left out once, and three others who agree are enough.
    by_hand = [1, (3 * 2 / 3 + 7 * 1) / 10, (1 * 0 + 9 * 1 / 3) / 10, 0]
    assert scores["value"] == pytest.approx(100 * sum(by_hand) / 4)
    assert counts(scores) == (4, 0, 0)
    eval_textvqa.main(
        ["--annotation-file", str(folder / "TextVQA_0.5.1_val.json"), "--result-dir", str(tmp_path / "out")]
    )
    assert capsys.readouterr().out.endswith("a\nSamples: 4 (0 missing)\nAccuracy: 55.00%\n\n")


@pytest.mark.parametrize(("name", "images"), [("docvqa", "documents"), ("infovqa", "infographicsvqa_images")])
def test_documents(models, tmp_path, name, images):
    folder, answers = tmp_path / name, tmp_path / "out" / "a.jsonl"
    build = getattr(eval_folders, name)
    build(folder, [["?"]] * 4)
    convert_document_questions.main([name, "--data", str(folder)])
    files = (folder / f"llava_{name}_val.jsonl", folder / images, answers)
    said = answer(model_vqa_loader.main, models["words"], *files, *REDUCED)
    right = [["?", said[0].upper()], [said[1] * 9, f"{said[1]}~"], [said[2] + "~" * len(said[2])], [f"{said[3]}~~~~~~"]]
    build(folder, right)
    scores = score(name, answers, folder)
    # Case does not count, the nearest right answer does: one letter of it is missing; one half is; more than one half.
    by_hand = [1, len(said[1]) / (len(said[1]) + 1), 1 / 2, 0]
    assert scores["value"] == pytest.approx(100 * sum(by_hand) / 4)
    assert scores["metric"] == "ANLS (%)"
    assert counts(scores) == (4, 0, 0)


def test_pope(models, tmp_path):
    folder, answers = tmp_path / "pope", tmp_path / "out" / "a.jsonl"
    eval_folders.pope(folder, ["yes"] * 9)
    files = (folder / "llava_pope_test.jsonl", folder / "val2014", answers)
    said = answer(model_vqa_loader.main, models["yes or no"], *files, *REDUCED)
    assert set(said) == {"yes", "no"}
    right = [*said[:8], {"yes": "no", "no": "yes"}[said[8]]]
    eval_folders.pope(folder, right)
    scores = score("pope", answers, folder)
    f1 = []
    for start in (0, 3, 6):
        pairs = list(zip(said[start : start + 3], right[start : start + 3], strict=True))
        hits, wrong = pairs.count(("yes", "yes")), pairs.count(("yes", "no")) + pairs.count(("no", "yes"))
        f1.append(100 * 2 * hits / (2 * hits + wrong) if hits else 0)
    assert scores["value"] == pytest.approx(sum(f1) / 3)
    assert scores["parts"]["popular"]["accuracy"] == pytest.approx(200 / 3)
    assert scores["parts"]["mean accuracy"] == pytest.approx(800 / 9)
    assert counts(scores) == (9, 0, 0)


@pytest.mark.parametrize("inner", ["", "/MME_Benchmark"])
def test_mme(models, tmp_path, inner):
    folder, answers = tmp_path / "MME", tmp_path / "out" / "a.jsonl"
    release = f"MME_Benchmark_release_version{inner}"
    eval_folders.mme(folder, ["Yes"] * 8, release)
    files = (folder / "llava_mme.jsonl", folder / release, answers)
    said = answer(model_vqa_loader.main, models["yes or no"], *files, *REDUCED)
    right = [text.capitalize() for text in said]
    right[0] = {"Yes": "No", "No": "Yes"}[right[0]]  # one of two questions about the first picture of artwork
    eval_folders.mme(folder, right, release)
    scores = score("mme", answers, folder)
    assert scores["parts"]["artwork"] == {"score": 125, "accuracy": 75, "accuracy+": 50}
    assert scores["parts"]["existence"]["score"] == 200
    assert (scores["value"], scores["parts"]["cognition"], scores["parts"]["total"]) == (325, 0, 325)
    assert counts(scores) == (8, 0, 0)


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_mmbench(models, tmp_path, name):
    folder, answers = tmp_path / name, tmp_path / "out" / "a.jsonl"
    build = getattr(eval_folders, name)
    build(folder, ["A"] * 6)
    more = ["--single-pred-prompt", *(["--lang", "cn"] if name.endswith("cn") else []), *REDUCED]
    said = answer(model_vqa_mmbench.main, models["letters"], next(folder.glob("*.tsv")), None, answers, *more)
    build(folder, [*said[:5], other(said[5])])  # one copy of the second question is wrong, and so is all of it
    scores = score(name, answers, folder)
    assert (scores["value"], scores["parts"]["first pass"], scores["parts"]["groups"]) == (50, 100, 2)
    assert counts(scores) == (6, 0, 0)
    assert (answers.parent / "a.upload.xlsx").is_file()


def test_mm_vet_is_for_a_judge(models, tmp_path):
    folder, answers = tmp_path / "mm-vet", tmp_path / "out" / "a.jsonl"
    eval_folders.mm_vet(folder, ["?"] * 2)
    files = (folder / "llava-mm-vet.jsonl", folder / "images", answers)
    said = answer(model_vqa.main, models["words"], *files, *REDUCED)
    eval_folders.mm_vet(folder, [f"{said[0]}<AND>nothing", f"nothing<OR>{said[1]}"])
    scores = score("mm_vet", answers, folder)
    assert scores["value"] is None
    assert list(scores["proxies"].values()) == [75]
    (answers.parent / "a_gpt-4-32k-grade-1runs.json").write_text(
        json.dumps({f"v1_{row}": {"model": ["gpt-4"], "content": [""], "score": [0.3 + row / 2]} for row in range(2)})
    )
    scores = score("mm_vet", answers, folder)
    assert scores["value"] == pytest.approx(55)
    assert scores["parts"] == {"math": pytest.approx(55), "ocr": pytest.approx(55)}


def test_seed_bench(models, tmp_path):
    folder, answers = tmp_path / "seed_bench", tmp_path / "out" / "a.jsonl"
    eval_folders.seed_bench(folder, ["A"] * 4)
    said = answer(
        model_vqa_loader.main, models["letters"], folder / "llava-seed-bench.jsonl", folder, answers, *REDUCED
    )
    eval_folders.seed_bench(folder, [said[0], said[1], other(said[2]), said[3]])
    scores = score("seed_bench", answers, folder)
    assert scores["value"] == 75
    assert (scores["parts"]["image"], scores["parts"]["video"]) == (50, 100)
    assert scores["parts"]["dimensions"] == {"Action": 100, "Scene": 50}
    assert counts(scores) == (4, 0, 0)


@pytest.mark.parametrize("start", STARTS)
def test_two_processes_and_the_table(models, tmp_path, monkeypatch, start):
    data, out = tmp_path / "data", tmp_path / "out"
    eval_folders.gqa(data / "gqa", ["?"] * 5, images="data/images")
    files = (data / "gqa" / "llava_gqa_testdev_balanced.jsonl", data / "gqa" / "data" / "images")
    runs, said = out / "llava1_5" / "gqa", {}
    for name, more in (("dense", []), ("random-one", ["--visual_token_num", "64", "--method", "random"])):
        place = runs / name / "answers.jsonl"
        said[name] = answer(model_vqa_loader.main, models["to an end"], *files, place, *more, "--max_new_tokens", "128")
    right = [*said["random-one"][:4], "wrong"]
    eval_folders.gqa(data / "gqa", right, images="data/images")
    for name, texts in said.items():
        hits = sum(one == other for one, other in zip(texts, right, strict=True))
        assert score("gqa", runs / name / "answers.jsonl", data / "gqa")["value"] == 20 * hits

    (tmp_path / "llava-v1.5-7b").symlink_to(models["to an end"])
    given = {"DATA": data, "MODELS": tmp_path, "OUT": out, "PYTHON": "python", "CUDA_VISIBLE_DEVICES": "0,1"}
    given |= {"METHOD": "random", "LIMIT": "4", "OMP_NUM_THREADS": "1", "DRY": 1 if start == "forks" else ""}
    done = bash(ROOT, script_of("llava1_5", "gqa"), **given)
    assert done.returncode == 0, done.stderr
    assert "--nproc_per_node=2" in done.stdout
    if start == "forks":
        monkeypatch.chdir(ROOT)
        run_here(done.stdout)
    run = runs / "random-11.1-first4"
    assert [row["text"] for row in read(run / "answers.jsonl")] == said["random-one"][:4]
    scores = json.loads((run / "scores.json").read_text())
    assert (scores["value"], counts(scores)) == (100, (4, 0, 0))

    evaluate(["report", str(out)])
    lines = [line.split("|")[1:3] for line in (out / "report.md").read_text().splitlines() if line.startswith("| ")]
    table = {name.strip(): value.strip() for name, value in lines}
    assert (table["random-one"], table["random-11.1-first4"]) == ("80.0", "100.0")
    assert "61.9" in table.values()  # what the paper prints for the dense model
