"""The tokenizer of a checkpoint, with the ids that the checkpoint was trained on.

Contents:
    LlamaSentencePieceTokenizer  `tokenizer.model` read by sentencepiece itself
    load_tokenizer               the tokenizer of a checkpoint folder
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vscan.compat import SPIECE_UNDERLINE, SentencePieceBackend

# A serialised protobuf message that follows another is merged into it. These bytes are a sentencepiece model that says
# nothing but `normalizer_spec { add_dummy_prefix: false }` (fields 3 and 3): appending them needs no protobuf package.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class LlamaSentencePieceTokenizer(SentencePieceBackend):
    """The Llama tokenizer on top of sentencepiece.

    Text without special tokens gets sentencepiece's ids, and ids are decoded as sentencepiece decodes them. Special
    tokens inside a text become their own ids. What `legacy` in tokenizer_config.json decides is the text after a
    special token: true gives it the space that sentencepiece puts before every text, false leaves it as it is.

    Modifications: `legacy=False` works without the protobuf package, only the beginning of the text gets the
    extra space, and decoding is left to sentencepiece, which joins bytes to characters and keeps leading spaces.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        legacy: bool | None = True,
        **kwargs,
    ):
        pattern = "_".join(["bos"] * add_bos_token + ["eos"] * add_eos_token) or "none"
        # The base class is told `legacy=True`: its other way of loading imports protobuf.
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            special_tokens_pattern=pattern,
            legacy=True,
            **kwargs,
        )
        self.legacy = legacy is not False  # null in an older tokenizer_config.json means true
        if not self.legacy:
            self.sp_model.LoadFromSerializedProto(self.sp_model.serialized_model_proto() + _NO_DUMMY_PREFIX)

    def tokenize(self, text: str, **kwargs) -> list[str]:
        """Returns the pieces of `text`, special tokens in it as pieces of their own."""
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        # A text that begins with a special token has no use for the space.
        prefix = "" if text.startswith(tuple(self.all_special_tokens)) else SPIECE_UNDERLINE
        return super().tokenize(prefix + text, **kwargs)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text of `tokens`, special tokens written out."""
        # Sentencepiece would drop special tokens, so it decodes the runs between them.
        runs = ((added, list(run)) for added, run in groupby(tokens, key=self._added_tokens_encoder.__contains__))
        text = "".join("".join(run) if added else self.sp_model.decode(run) for added, run in runs)
        # The space from `tokenize`; under `legacy` sentencepiece put one in and takes it out again, and a model that
        # removes extra spaces has done so too.
        starts_with_space = not self.legacy and tokens and tokens[0].startswith(SPIECE_UNDERLINE)
        return text[1:] if starts_with_space and text.startswith(" ") else text


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a checkpoint folder.

    A folder in Hugging Face format (it has a tokenizer.json) goes to `AutoTokenizer`. In the original format
    (tokenizer.model alone) the model is read by sentencepiece itself: converted to a fast tokenizer, as transformers
    does it, some texts get other ids.

    Raises:
        FileNotFoundError: the folder has neither file.
        ValueError: tokenizer.model is not a sentencepiece model.
    """
    folder = Path(folder)
    model = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    if not model.is_file():
        raise FileNotFoundError(
            f"expected tokenizer.model (original format) or tokenizer.json (Hugging Face format) in {folder}"
        )
    try:
        return LlamaSentencePieceTokenizer.from_pretrained(folder)
    except RuntimeError as error:
        raise ValueError(f"expected a sentencepiece model in {model}; is the download complete?") from error
