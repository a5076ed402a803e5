"""Which text each view is read beside, for methods that read text."""

from collections.abc import Collection

from ..checks.guards import generation


def owners(placeholders: list[int], sizes: list[int]) -> list[int]:
    """The prompt that each picture belongs to.

    Args:
        placeholders: of each prompt.
        sizes: placeholders of each picture, in the order in which the prompts hold them.

    Raises:
        ValueError: if the prompts' placeholders are not those of these pictures.
    """
    found, left = [], iter(sizes)
    for prompt, number in enumerate(placeholders):
        while number > 0:
            number -= next(left, number + 1)
            found.append(prompt)
        if number:
            break
    if number or len(found) != len(sizes):
        raise ValueError(f"expected the placeholders of images of {sizes} tokens, got {placeholders} per prompt")
    return found


def texts_of(reduction, tails: list[list[int]], of_views: list[int]) -> list:
    """What `Views.text` holds: what the method's `prepare` gave makes of the text of each view's prompt.

    Args:
        tails: token ids of every prompt behind its last picture, which is its text where none was given.
        of_views: the prompt of each view.

    Raises:
        ValueError: for another number of texts than there are prompts, or where there is no text at all.
    """
    texts = reduction.text
    if texts is None:
        if reduction.processor is None:
            raise ValueError(
                f"method {reduction.config.method!r} reads text: expected text=[one a prompt], or processor= to decode "
                "the prompts with, got neither"
            )
        tokenizer = getattr(reduction.processor, "tokenizer", reduction.processor)
        texts = [tokenizer.decode(tail, skip_special_tokens=True).strip() for tail in tails]
    if len(texts) != len(tails):
        raise ValueError(f"text: expected one for each of the {len(tails)} prompts, got {len(texts)}")
    read = reduction.read(list(texts))
    return [read[prompt] for prompt in of_views]


def behind_last(row: list[int], marks: Collection[int]) -> list[int]:
    """Token ids behind the last of some marks."""
    return row[1 + max((index for index, token in enumerate(row) if token in marks), default=-1) :]


def texts_of_call(reduction, config, name: str, names: Collection[str], sizes: list[int], views: list[int]) -> list:
    """`texts_of` for a call of a stock model that is under way.

    Args:
        config: of the model.
        name, names: "image" or "video", and all that the model sees.
        sizes, views: placeholders and views of each picture.
    """
    call = generation.get()
    if call is None or call.input_ids is None:
        raise ValueError(
            f"method {reduction.config.method!r} reads text: expected input_ids beside the pictures, got none"
        )
    rows, seen = call.input_ids.tolist(), {each: getattr(config, f"{each}_token_id") for each in names}
    of_pictures = owners([row.count(seen[name]) for row in rows], sizes)
    tails = [behind_last(row, seen.values()) for row in rows]
    return texts_of(reduction, tails, [prompt for prompt, n in zip(of_pictures, views, strict=True) for _ in range(n)])
