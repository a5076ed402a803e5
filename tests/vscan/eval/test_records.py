"""Answers files under way: cut at any byte and continued, nothing is lost, doubled or answered again."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.eval.records import AnswersFile

CONFIG = {"model_path": "m", "temperature": 0.0, "reduction": {"visual_tokens": 96, "layers": [[16, 32]]}}
TEXTS = ["A cat.", "", "two\nlines", 'a "quote"', "Où ? 😀 \u2028", "\\n", "7"]


def answer_row(number: int) -> dict:
    return {"question_id": number, "text": TEXTS[number % len(TEXTS)]}


def stats_row(number: int) -> dict:
    return {"visual_tokens": 576 + number, "stages": [[0, 96]]}


def read(file: Path) -> list:
    """The rows of a file that must be whole lines of JSON."""
    content = file.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


@dataclass
class Run:
    """A command that answers `num_rows` questions into `folder`, `batch_size` at a time."""

    folder: Path
    num_rows: int = 5
    batch_size: int = 2
    config: dict | None = None

    def __post_init__(self):
        self.answers = self.folder / "answers.jsonl"
        self.stats = self.folder / "answers.jsonl.stats.jsonl"
        self.run = self.folder / "answers.jsonl.run.json"

    def go(self) -> list[int]:
        """Start, or go on where it stopped; returns which questions were answered."""
        answers = AnswersFile(self.answers, self.config or CONFIG)
        answered = []
        while answers.num_done < self.num_rows:
            batch = list(range(answers.num_done, min(self.num_rows, answers.num_done + self.batch_size)))
            answers.append([answer_row(number) for number in batch], [stats_row(number) for number in batch])
            answered += batch
        return answered

    def cut(self, answers: bytes, stats: bytes) -> None:
        """What is left on the disk."""
        self.answers.write_bytes(answers)
        self.stats.write_bytes(stats)

    def check_complete(self) -> None:
        assert read(self.answers) == [answer_row(number) for number in range(self.num_rows)]
        assert read(self.stats) == [stats_row(number) for number in range(self.num_rows)]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lines_of(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


# -------------------------------------------------------------------------------------------------------- in one go


def test_a_new_file_is_empty_and_its_folder_is_made(tmp_path):
    file = tmp_path / "a" / "b" / "answers.jsonl"
    answers = AnswersFile(str(file), CONFIG)
    assert answers.num_done == 0
    assert file.read_bytes() == b""
    assert json.loads((file.parent / "answers.jsonl.run.json").read_text()) == CONFIG
    beside = {"answers.jsonl", "answers.jsonl.run.json", "answers.jsonl.stats.jsonl"}
    assert {path.name for path in file.parent.iterdir()} <= beside  # nothing temporary is left


def test_rows_come_in_order_and_are_whole_lines_of_json_at_any_time(tmp_path):
    run = Run(tmp_path)
    answers = AnswersFile(run.answers, CONFIG)
    for number in range(6):
        answers.append([answer_row(2 * number), answer_row(2 * number + 1)], [stats_row(2 * number)] * 2)
        assert answers.num_done == 2 * number + 2
        assert read(run.answers) == [answer_row(row) for row in range(answers.num_done)]
        assert len(read(run.stats)) == answers.num_done
        assert json.loads(run.run.read_text()) == CONFIG


def test_a_run_in_one_go(run):
    assert run.go() == [0, 1, 2, 3, 4]
    run.check_complete()
    assert run.answers.read_bytes() == b"".join(json.dumps(answer_row(row)).encode() + b"\n" for row in range(5))


def test_a_complete_run_is_left_as_it_is(run):
    run.go()
    before = snapshot(run.folder)
    assert run.go() == []
    assert snapshot(run.folder) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_answer_is_not_on_the_disk_before_its_stats(run):
    answers = AnswersFile(run.answers, CONFIG)
    answers.append([answer_row(0)], [stats_row(0)])
    before = run.answers.read_bytes()
    run.stats.unlink()
    run.stats.symlink_to("/dev/full")  # can be opened, not written to
    with pytest.raises(OSError, match=r"No space left|Invalid argument"):  # a device cannot be cut back either
        answers.append([answer_row(1)], [stats_row(1)])
    assert run.answers.read_bytes() == before
    assert answers.num_done == 1


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("batch_size", [2, 5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_at_any_byte_of_its_answers_goes_on(tmp_path, batch_size):
    run = Run(tmp_path, batch_size=batch_size)
    run.go()
    answers, stats = run.answers.read_bytes(), run.stats.read_bytes()
    for cut in range(len(answers) + 1):
        num_whole = answers[:cut].count(b"\n")
        # The batch under way has its stats already; so have, in the worst case, all that follow.
        in_batches = min(run.num_rows, (num_whole // batch_size + 1) * batch_size)
        for num_stats in {in_batches, run.num_rows}:
            run.cut(answers[:cut], b"".join(lines_of(stats)[:num_stats]))
            assert run.go() == list(range(num_whole, run.num_rows))
            run.check_complete()


@pytest.mark.parametrize("batch_size", [2, 5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_at_any_byte_of_its_stats_goes_on(tmp_path, batch_size):
    run = Run(tmp_path, batch_size=batch_size)
    run.go()
    answers, stats = run.answers.read_bytes(), run.stats.read_bytes()
    for cut in range(len(stats) + 1):
        # Stats of a batch are written first: its answers are not there yet.
        num_done = stats[:cut].count(b"\n") // batch_size * batch_size
        run.cut(b"".join(lines_of(answers)[:num_done]), stats[:cut])
        assert run.go() == list(range(num_done, run.num_rows))
        run.check_complete()


def test_stats_without_any_answer_are_begun_again(run):
    run.go()
    run.answers.unlink()
    assert run.go() == [0, 1, 2, 3, 4]
    run.check_complete()


@settings(deadline=None, derandomize=True, max_examples=80)
@given(num_rows=st.integers(1, 9), batch_sizes=st.lists(st.integers(1, 4), max_size=4), data=st.data())
def test_a_run_that_is_killed_again_and_again_ends_as_one_in_one_go(num_rows, batch_sizes, data):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        undisturbed, run = Run(Path(one), num_rows), Run(Path(other), num_rows)
        undisturbed.go()
        whole = 0
        for run.batch_size in batch_sizes:
            assert run.go() == list(range(whole, num_rows))
            answers, stats = run.answers.read_bytes(), run.stats.read_bytes()
            # Killed somewhere on the way: at least what was there before is there, and stats before their answers.
            least = sum(map(len, lines_of(answers)[:whole]))
            cut = data.draw(st.integers(least, len(answers)))
            whole = answers[:cut].count(b"\n")
            first_stats = sum(map(len, lines_of(stats)[:whole]))
            run.cut(answers[:cut], stats[: data.draw(st.integers(first_stats, len(stats)))])
        assert run.go() == list(range(whole, num_rows))
        run.check_complete()
        assert snapshot(run.folder) == snapshot(undisturbed.folder)


def test_files_end_aligned_also_where_stats_were_lost(run):
    """A disk that loses power may keep the answers and lose the end of the stats; they must not shift."""
    run.go()
    answers, stats = run.answers.read_bytes(), run.stats.read_bytes()
    for cut in range(len(stats) + 1):
        for num_done in {stats[:cut].count(b"\n") + 1, run.num_rows} - {run.num_rows + 1}:
            run.cut(b"".join(lines_of(answers)[:num_done]), stats[:cut])
            run.go()
            assert read(run.answers) == [answer_row(number) for number in range(run.num_rows)]
            rows = read(run.stats)
            assert len(rows) == run.num_rows
            # Either an answer without stats was given again, or its stats say that they are not known.
            assert all(row in (stats_row(number), {}, None) for number, row in enumerate(rows))


# ----------------------------------------------------------------------------------------------- the configuration


def test_a_configuration_is_compared_as_json_has_it(run):
    spellings = [{"layers": ((16, 32),), 3: None}, {"3": None, "layers": [[16, 32]]}, {3: None, "layers": ([16, 32],)}]
    run.config = spellings[0]
    run.go()
    for run.config in spellings:
        assert run.go() == []


@pytest.mark.parametrize(
    ("config", "differs"),
    [
        ({**CONFIG, "temperature": 0.2}, "temperature: 0.0, now 0.2"),
        ({**CONFIG, "reduction": None}, f"reduction: {CONFIG['reduction']!r}, now None"),
        ({**CONFIG, "dtype": "auto"}, "dtype: None, now 'auto'"),
        ({"model_path": "n", "reduction": CONFIG["reduction"]}, "model_path: 'm', now 'n'; temperature: 0.0, now None"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(run, config, differs):
    run.go()
    before = snapshot(run.folder)
    run.config = config
    with pytest.raises(ValueError, match="expected one that this command began") as caught:
        run.go()
    assert str(caught.value) == (
        f"answers file {str(run.answers)!r}: expected one that this command began, got 5 rows of another run "
        f"({differs}); give another file or remove this one"
    )
    assert snapshot(run.folder) == before


def test_a_flag_that_is_new_and_unset_is_named_or_makes_no_difference(run):
    run.go()
    run.config = {**CONFIG, "top_k": None}
    try:
        assert run.go() == []
    except ValueError as error:
        assert "top_k" in str(error)  # noqa: PT017 - either is right, an empty list of differences is not


@pytest.mark.parametrize("at_row", [0, 3])
def test_refusing_says_how_many_rows_there_are(run, at_row):
    run.go()
    lines = lines_of(run.answers.read_bytes())
    run.answers.write_bytes(b"".join(lines[:at_row]) + lines[at_row][:5])
    run.config = {**CONFIG, "temperature": 0.2}
    with pytest.raises(ValueError, match=f"got {at_row} rows of another run"):
        run.go()


def test_answers_without_a_configuration_are_refused(run):
    run.go()
    run.run.unlink()
    before = snapshot(run.folder)
    with pytest.raises(ValueError, match=r"got 5 rows of another run \(no run.json\)"):
        run.go()
    assert snapshot(run.folder) == before


def test_refusing_changes_nothing_also_where_another_run_is_writing_a_row(run):
    run.go()
    with open(run.answers, "ab") as under_way:
        under_way.write(b'{"question_id": 5, "te')
    before = snapshot(run.folder)
    run.config = {**CONFIG, "temperature": 0.2}
    with pytest.raises(ValueError, match="temperature"):
        run.go()
    assert snapshot(run.folder) == before


@pytest.mark.parametrize("end", [b"\n", b""], ids=["with", "without"])
def test_a_file_that_no_run_began_is_refused_with_and_without_a_last_line_end(run, end):
    foreign = b'{"precious": "and the only copy"}' + end
    run.answers.write_bytes(foreign)
    with pytest.raises(ValueError, match=r"no run.json"):
        run.go()
    assert run.answers.read_bytes() == foreign


def test_a_run_that_has_no_answer_yet_may_be_begun_with_another_configuration(run):
    AnswersFile(run.answers, CONFIG)
    run.config = {"model_path": "n"}
    assert run.go() == [0, 1, 2, 3, 4]
    assert json.loads(run.run.read_text()) == {"model_path": "n"}
