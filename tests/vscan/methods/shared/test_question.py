"""What is made of a question: by a whole CLIP in a folder, or by the decoder's table; and what is missing."""

import pytest
import torch
from contracts.families import Words
from helpers import tiny_llava, tiny_original
from qwen_helpers import tiny_qwen
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import vscan
from vscan.methods.shared.question import reader, token_rows, without_instructions

LENGTH = 9  # of CLIP's text encoder, both marks among them
MARKS = ["<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def model():
    return tiny_llava(num_layers=2, vision_layers=3, side=6)


@pytest.fixture(scope="module")
def clip(model, tmp_path_factory):
    """A folder with a CLIP around a tower of the model's size, of words of one letter."""
    folder = tmp_path_factory.mktemp("clip")
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 60, "max_position_embeddings": LENGTH, "projection_dim": 16, "eos_token_id": 59}
    config = CLIPConfig(text_config=text, vision_config=model.config.vision_config.to_dict(), projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate([*letters, *MARKS])}
    vocabulary[MARKS[1]] = 59
    CLIPTokenizer(vocab=vocabulary, merges=[], unk_token=MARKS[1], pad_token=MARKS[1]).save_pretrained(folder)
    return folder


def test_instructions_are_left_out():
    text = "What is it?\nAnswer the question using a single word or phrase."
    assert without_instructions(text) == "What is it?"
    text = "Which?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    assert without_instructions(text) == "Which?\nA. x\nB. y"
    assert without_instructions("Answer the question.") == "Answer the question."


def test_clip_reads_each_segment_between_its_marks(model, clip):
    read, whole = reader("m", model, None, "auto", str(clip)), CLIPModel.from_pretrained(clip).eval()
    ids = [2 * number + 1 for number in range(10)]  # a b c ..., each a word of its own
    (question,) = read(["a b c d e f g h i j"])
    assert [len(words) for words in question.words] == [7, 3]
    with torch.no_grad():
        for pooled, words, part in zip(question.pooled, question.words, (ids[:7], ids[7:]), strict=True):
            expected = whole.text_model(input_ids=torch.tensor([[52, *part, 59]])).last_hidden_state[0]
            torch.testing.assert_close(torch.cat((words, pooled[None])), whole.text_projection(expected[1:]))


def test_an_empty_text_is_its_marks(model, clip):
    empty, one = reader("m", model, None, "clip", str(clip))(["", "a"])
    assert torch.equal(empty.words[0], empty.pooled)
    assert not torch.equal(one.words[0], one.pooled)


def test_clip_sees_with_the_models_own_norm_in_float32(model, clip):
    see = reader("m", model, None, "clip", str(clip))(["a"])[0].see
    features = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    whole = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        normed = model.model.vision_tower.post_layernorm(features)
        torch.testing.assert_close(see(features), whole.visual_projection(normed))
    assert see(features.half()).dtype == torch.float32


def test_a_tower_that_was_read_from_a_whole_clip_names_it(clip):
    model = tiny_original(num_layers=2, side=6)
    assert reader("m", model, Words(), "auto", None)(["3"])[0].see is None
    model.model.vision_tower.vision_tower.config._name_or_path = str(clip)
    assert reader("m", model, None, "auto", None)(["a"])[0].see is not None
    assert reader("m", model, Words(), "embeddings", None)(["3"])[0].see is None


def test_without_clip_rows_of_the_table_are_read(model):
    (question,) = reader("m", model, Words(), "auto", None)(["5 6 5"])
    table = model.get_input_embeddings().weight
    assert question.words[0].equal(table[[5, 6, 5]])
    torch.testing.assert_close(question.pooled[0], table[[5, 6, 5]].mean(dim=0))
    assert not question.words[0].requires_grad
    (empty,) = reader("m", model, Words(), "auto", None)([""])
    assert empty.words[0].tolist() == [[0.0] * 32]
    assert token_rows("m", model, Words())(["5 6", "7"]).equal(table[[5, 6, 7]])


@pytest.mark.parametrize(("relevance", "folder"), [("clip", None), ("clip", "nowhere"), ("auto", "nowhere")], ids=str)
def test_a_folder_without_a_whole_clip_is_refused_in_one_line(model, relevance, folder):
    expected = (
        "method 'eadp': expected a model with a CLIP tower, and in clip= the folder of the whole CLIP with its text"
    )
    with pytest.raises(ValueError, match=f"^{expected} encoder and tokenizer, got '{folder or ''}'$"):
        vscan.apply(model, "eadp", 9, relevance=relevance, clip=folder, processor=Words())


def test_clip_beside_another_tower_is_refused(clip):
    with pytest.raises(ValueError, match=r"^method 'cdpruner': expected a model with a CLIP tower"):
        vscan.apply(tiny_qwen(), "cdpruner", 0.5, clip=str(clip), processor=Words())


@pytest.mark.parametrize("method", ["cdpruner", "eadp", "mmtok"])
def test_rows_need_a_tokenizer(model, method):
    expected = f"method '{method}' reads the question with the decoder's tokenizer: expected processor=, got None"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        vscan.apply(model, method, 9)
