"""Ids and texts are those of sentencepiece, and of the slow tokenizer that the checkpoints were published with."""

import io
import json
import pickle
import re

import pytest
import sentencepiece
import transformers.tokenization_utils_sentencepiece as backend
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.tokenizer import load_tokenizer

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "What is shown in the picture? Is there a dog in the image?\nAnswer with a single word.",
    "Où est le café? 猫は何を見ていますか",
    "two  spaces,   three spaces",
] * 4

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}

# Text in which sentencepiece and its conversions are known to part: spaces at the ends, runs of them, its own space
# symbol, bytes, things that look like pieces.
TEXTS = st.lists(
    st.sampled_from(["the", "The", " ", "  ", "\n", "▁", "café", "猫", "🐈", "<0x41>", "<", "s>", "\x00", "Is"])
    | st.text(max_size=4),
    max_size=8,
).map("".join)
SPECIAL_TEXTS = st.lists(TEXTS | st.sampled_from(list(SPECIAL)), max_size=5).map("".join)


def write_checkpoint(folder, remove_extra_whitespaces=False, **config):
    """Writes a Llama tokenizer (byte pairs with byte fallback) in the original format."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_extra_whitespaces,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"legacy": False, "model_max_length": 2048, "padding_side": "right", "pad_token": None, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<unk>"}')
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tokenizer") / "original")


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def legacy_tokenizer(tmp_path_factory):
    return load_tokenizer(write_checkpoint(tmp_path_factory.mktemp("tokenizer") / "legacy", legacy=True))


@pytest.fixture(scope="module")
def reference(checkpoint):
    return sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))


@pytest.fixture(scope="module")
def published(golden):
    return load_tokenizer(golden / "cli" / "llava" / "tiny-llava-v1.5")


def split_at_special(text):
    return [part for part in re.split(f"({'|'.join(SPECIAL)})", text) if part]


def ids_without_prefix(reference, text):
    # \x01 is in no piece but its own byte, so nothing merges with it, and the prefix goes in front of it.
    return reference.encode("\x01" + text)[len(reference.encode("\x01")) :]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS.filter(lambda text: not any(token in text for token in SPECIAL)))
def test_plain_text_gets_the_ids_of_sentencepiece(tokenizer, legacy_tokenizer, reference, text):
    expected = [1, *reference.encode(text)]
    assert tokenizer(text).input_ids == expected
    assert legacy_tokenizer(text).input_ids == expected
    assert tokenizer(text).input_ids == expected, "the second call differs from the first"


@settings(max_examples=60, deadline=None)
@given(text=SPECIAL_TEXTS)
def test_special_tokens_in_the_text_are_split_out(tokenizer, legacy_tokenizer, reference, text):
    expected, expected_legacy = [1], [1]
    for index, part in enumerate(split_at_special(text)):
        if part in SPECIAL:
            expected.append(SPECIAL[part])
            expected_legacy.append(SPECIAL[part])
        else:
            expected += ids_without_prefix(reference, part) if index else reference.encode(part)
            expected_legacy += reference.encode(part)
    assert tokenizer(text).input_ids == expected
    assert legacy_tokenizer(text).input_ids == expected_legacy


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(3, 320), max_size=12))
def test_decoding_is_that_of_sentencepiece(tokenizer, legacy_tokenizer, reference, ids):
    """Half of these ids are bytes, most of them no valid UTF-8."""
    expected = reference.decode(ids)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.batch_decode([[1, *ids, 2]], skip_special_tokens=True) == [expected]
    assert legacy_tokenizer.decode(ids) == expected


@settings(max_examples=60, deadline=None)
@given(text=SPECIAL_TEXTS)
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer(text).input_ids[1:]
    assert tokenizer.decode(ids) == text.replace("▁", " "), "sentencepiece's symbol for a space comes back as one"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_that_removes_spaces_gives_its_answers_back_whole(tmp_path, legacy):
    tokenizer = load_tokenizer(write_checkpoint(tmp_path / "trimming", remove_extra_whitespaces=True, legacy=legacy))
    for answer in ("Two", "No", "a dog in the picture"):
        before, ids = (tokenizer(text).input_ids for text in ("user:", f"user: {answer}"))
        assert tokenizer.decode(ids[len(before) :]) == answer


def test_special_tokens_as_transformers_4_37_treated_them(published):
    """The ids on the right were recorded with transformers 4.37.2, legacy=False."""
    expected = {
        "": [1],
        " ": [1, 527, 527],
        "▁": [1, 527, 527],
        "\n": [1, 527, 13],
        " hello": [1, 527, 362, 537, 478],
        "hello ": [1, 362, 537, 478, 527],
        "</s>": [1, 2],
        " </s>x": [1, 527, 527, 2, 123],
        "</s> ": [1, 2, 527],
        "</s>hello": [1, 2, 259, 537, 478],
        "<s> hello": [1, 1, 362, 537, 478],
        "<unk>hello": [1, 0, 259, 537, 478],
        "hello</s> world": [1, 362, 537, 478, 2, 266, 345, 342],
        "Is it?</s>Yes.</s>": [1, 410, 527, 277, 554, 2, 584, 272, 545, 2],
    }
    assert {text: published(text).input_ids for text in expected} == expected
    assert published.decode(expected["hello</s> world"]) == "<s> hello</s> world"
    assert published.decode(expected["</s>hello"], skip_special_tokens=True) == "hello"
    assert published.decode(expected[" hello"], skip_special_tokens=True) == " hello"


def test_recorded_answers_are_decoded_to_their_texts(golden, published):
    files = sorted((golden / "cli" / "rows" / "llava").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())]
    assert len(rows) == 6 * 13
    texts = published.batch_decode([row["generated_ids"] for row in rows], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [row["text"] for row in rows]


def test_settings_come_from_the_folder(tokenizer, published):
    for loaded in (tokenizer, published):
        assert (loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2, 0)
        assert (loaded.model_max_length, loaded.padding_side, loaded.legacy) == (2048, "right", False)


def test_other_settings_come_from_the_folder_too(tmp_path, reference):
    other = load_tokenizer(
        write_checkpoint(tmp_path / "other", padding_side="left", add_bos_token=False, add_eos_token=True, legacy=None)
    )
    assert (other.padding_side, other.legacy) == ("left", True)
    assert other("the dog").input_ids == [*reference.encode("the dog"), 2]


def test_a_batch_is_padded(tokenizer, reference):
    batch = tokenizer(["the", "the dog"], padding=True, return_tensors="pt")
    short, long = [1, *reference.encode("the")], [1, *reference.encode("the dog")]
    num_pad = len(long) - len(short)
    assert num_pad > 0
    assert batch.input_ids.tolist() == [short + [0] * num_pad, long]
    assert batch.attention_mask.tolist() == [[1] * len(short) + [0] * num_pad, [1] * len(long)]
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["the", "the dog"]


def test_the_protobuf_package_is_not_needed(checkpoint, monkeypatch):
    def refuse(*args):
        raise ImportError("protobuf")

    monkeypatch.setattr(backend, "import_protobuf", refuse)
    loaded = load_tokenizer(checkpoint)
    assert loaded("</s>the").input_ids[:2] == [1, 2]
    assert loaded.convert_ids_to_tokens(loaded("</s>the").input_ids)[2] != "▁the"


def test_a_saved_or_pickled_tokenizer_is_the_same(tokenizer, tmp_path):
    text = " the</s>dog <unk>"
    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert (again.pad_token_id, again.model_max_length, again.legacy) == (0, 2048, False)


def test_a_folder_in_hugging_face_format_gets_its_fast_tokenizer(golden):
    qwen = load_tokenizer(golden / "cli" / "qwen" / "tiny-qwen2.5-vl")
    assert qwen.is_fast
    assert qwen.decode(qwen("Why is the ground wet? ").input_ids) == "Why is the ground wet? "


def test_tokenizer_json_goes_before_tokenizer_model(golden, checkpoint, tmp_path):
    for file in (golden / "cli" / "qwen" / "tiny-qwen2.5-vl").glob("tokenizer*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
    assert load_tokenizer(tmp_path).is_fast


def test_missing_files_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"tokenizer\.model .* tokenizer\.json .* in {folder}$"):
            load_tokenizer(folder)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\nsize 499723\n")
    with pytest.raises(ValueError, match=rf"sentencepiece model in {tmp_path / 'tokenizer.model'}"):
        load_tokenizer(tmp_path)
