"""Prompt templates: how a conversation with LLaVA is written out as one text.

Contents:
    Conversation      a template together with its messages
    conv_templates    the templates by name
    get_conversation  a fresh conversation of a named template
    build_prompt      the prompt for one question about one image
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN


@dataclass
class Conversation:
    """A prompt template and the messages said so far.

    The prompt is `system`, then for every message the text that opens its role's turn, the message, and the text that
    closes the turn.

    Attributes:
        roles: The names of the two sides, the user's first.
        openings: What opens a turn of either role.
        sep: What closes a turn of the user.
        sep2: What closes a turn of the assistant.
        system: What the prompt begins with.
        messages: `[role, text]` pairs; the text None marks the turn that the model is to continue.
    """

    roles: tuple[str, str]
    openings: tuple[str, str]
    sep: str
    sep2: str
    system: str = ""
    messages: list[list[str | None]] = field(default_factory=list)

    def append_message(self, role: str, message: str | None) -> None:
        """Adds a turn; `message=None` leaves it open for the model.

        Raises:
            ValueError: `role` is not one of `roles`.
        """
        if role not in self.roles:
            raise ValueError(f"expected a role out of {self.roles}, got {role!r}")
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """Returns the conversation as one text, messages exactly as they were given."""
        prompt = self.system
        for role, message in self.messages:
            side = self.roles.index(role)
            if message is None:
                # The model itself generates the space: "ASSISTANT:" is followed by the token " Yes".
                prompt += self.openings[side].rstrip(" ")
            else:
                prompt += self.openings[side] + message + (self.sep, self.sep2)[side]
        return prompt

    def copy(self) -> Conversation:
        """Returns a conversation whose messages can be changed without changing these."""
        return replace(self, messages=[list(message) for message in self.messages])


_USER_ASSISTANT = {"roles": ("USER", "ASSISTANT"), "openings": ("USER: ", "ASSISTANT: "), "sep": " ", "sep2": "</s>"}

_vicuna_v1 = Conversation(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    **_USER_ASSISTANT,
)

conv_templates = {
    "vicuna_v1": _vicuna_v1,
    "v1": _vicuna_v1,
    "llava_v1": Conversation(
        system="A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
        **_USER_ASSISTANT,
    ),
    "plain": Conversation(roles=("USER", "ASSISTANT"), openings=("", ""), sep="\n", sep2="\n"),
    "mistral_instruct": Conversation(
        roles=("USER", "ASSISTANT"), openings=("[INST] ", " "), sep=" [/INST]", sep2=" </s>"
    ),
    "chatml_direct": Conversation(
        roles=("user", "assistant"),
        openings=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        sep="<|im_end|>",
        sep2="<|im_end|>",
        system="<|im_start|>system\nAnswer the questions.<|im_end|>",
    ),
}


def get_conversation(name: str) -> Conversation:
    """Returns a fresh conversation of the template `name`.

    Raises:
        ValueError: there is no such template.
    """
    if name not in conv_templates:
        raise ValueError(f"expected a conversation template out of {', '.join(conv_templates)}, got {name!r}")
    return conv_templates[name].copy()


def build_prompt(question: str, conv_mode: str, mm_use_im_start_end: bool = False, has_image: int = True) -> str:
    """Returns the prompt that asks `question` about one image, which comes first, about the frames of a clip, or none.

    Args:
        question: The text, used as it is: a space or newline at either end stays.
        conv_mode: The name of the template.
        mm_use_im_start_end: Whether the checkpoint was trained with marks around the image.
        has_image: Whether there is an image; a number for so many placeholders side by side, one for each frame.

    Raises:
        ValueError: there is no such template.
    """
    image = DEFAULT_IMAGE_TOKEN * has_image
    if mm_use_im_start_end:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    conversation = get_conversation(conv_mode)
    user, assistant = conversation.roles
    conversation.append_message(user, f"{image}\n{question}" if has_image else question)
    conversation.append_message(assistant, None)
    return conversation.get_prompt()
