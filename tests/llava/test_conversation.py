"""Prompts are the published ones, character by character."""

import pytest

from llava.conversation import build_prompt, conv_templates, get_conversation

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CHATML = "<|im_start|>system\nAnswer the questions.<|im_end|>"

ONE_QUESTION = {
    "vicuna_v1": f"{VICUNA} USER: <image>\nWhy? ASSISTANT:",
    "v1": f"{VICUNA} USER: <image>\nWhy? ASSISTANT:",
    "llava_v1": f"{LLAVA} USER: <image>\nWhy? ASSISTANT:",
    "plain": "<image>\nWhy?\n",
    "mistral_instruct": "[INST] <image>\nWhy? [/INST]",
    "chatml_direct": f"{CHATML}<|im_start|>user\n<image>\nWhy?<|im_end|><|im_start|>assistant\n",
}

TWO_TURNS = {
    "vicuna_v1": f"{VICUNA} USER: Hi ASSISTANT: Yes.</s>USER: So ASSISTANT:",
    "v1": f"{VICUNA} USER: Hi ASSISTANT: Yes.</s>USER: So ASSISTANT:",
    "llava_v1": f"{LLAVA} USER: Hi ASSISTANT: Yes.</s>USER: So ASSISTANT:",
    "plain": "Hi\nYes.\nSo\n",
    "mistral_instruct": "[INST] Hi [/INST] Yes. </s>[INST] So [/INST]",
    "chatml_direct": f"{CHATML}<|im_start|>user\nHi<|im_end|><|im_start|>assistant\nYes.<|im_end|>"
    "<|im_start|>user\nSo<|im_end|><|im_start|>assistant\n",
}


def test_every_template_is_tested():
    assert set(ONE_QUESTION) == set(TWO_TURNS) == set(conv_templates)


@pytest.mark.parametrize("name", ONE_QUESTION)
def test_the_prompt_of_one_question(name):
    assert build_prompt("Why?", name) == ONE_QUESTION[name]


@pytest.mark.parametrize("name", TWO_TURNS)
def test_the_prompt_of_a_longer_conversation(name):
    conversation = get_conversation(name)
    user, assistant = conversation.roles
    for role, message in [(user, "Hi"), (assistant, "Yes."), (user, "So"), (assistant, None)]:
        conversation.append_message(role, message)
    assert conversation.get_prompt() == TWO_TURNS[name]


def test_the_question_is_used_as_it_is():
    prompt = build_prompt(" {0} two  spaces\n\n ", "vicuna_v1")
    assert prompt == f"{VICUNA} USER: <image>\n {{0}} two  spaces\n\n  ASSISTANT:"


def test_marks_around_the_image():
    prompt = build_prompt("Why?", "vicuna_v1", mm_use_im_start_end=True)
    assert prompt == f"{VICUNA} USER: <im_start><image><im_end>\nWhy? ASSISTANT:"


def test_the_published_separators():
    conversation = conv_templates["vicuna_v1"]
    assert (conversation.roles, conversation.sep, conversation.sep2) == (("USER", "ASSISTANT"), " ", "</s>")


def test_a_copy_leaves_the_original_alone():
    conversation = get_conversation("vicuna_v1")
    conversation.append_message("USER", "Hi")
    copy = conversation.copy()
    copy.messages[0][1] = "changed"
    copy.append_message("ASSISTANT", None)
    assert conversation.messages == [["USER", "Hi"]]
    assert copy.messages == [["USER", "changed"], ["ASSISTANT", None]]


def test_templates_stay_empty():
    get_conversation("vicuna_v1").append_message("USER", "Hi")
    build_prompt("Why?", "vicuna_v1")
    assert all(conversation.messages == [] for conversation in conv_templates.values())


def test_an_unknown_template_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"out of vicuna_v1, .*plain.*, got 'vicuna_v2'"):
        build_prompt("Why?", "vicuna_v2")


def test_an_unknown_role_is_an_error():
    with pytest.raises(ValueError, match=r"\('USER', 'ASSISTANT'\), got 'user'"):
        get_conversation("vicuna_v1").append_message("user", "Hi")
