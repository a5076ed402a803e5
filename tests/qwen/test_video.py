"""Videos become patches: which frames, how large, in which order; and a reduced model answers about them."""

from fractions import Fraction

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_helpers import END, START, VIDEO_TOKEN, tiny_qwen
from transformers import Qwen2VLImageProcessorPil

import vscan
from qwen.images import UNIT, process_image
from qwen.video import choose_frames, frame_budget, process_frames, process_video
from vscan.io.frames import read_frames

PROCESSOR = Qwen2VLImageProcessorPil()
GREYS = [20 * number for number in range(12)]


def grey(value, size=(84, 56)):
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Twelve frames at six a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("videos") / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(6))
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        stream.bit_rate = 4_000_000
        for value in GREYS:
            for packet in stream.encode(av.VideoFrame.from_image(grey(value))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_the_frames_that_were_chosen_are_read_in_the_order_that_was_asked_for(file):
    seen = []
    frames, rate = read_frames(file, lambda number, rate: seen.append((number, rate)) or [11, 0, 5, 0])
    assert seen == [(12, 6.0)]
    assert rate == 2.0
    greys = [frame.getpixel((40, 30))[0] for frame in frames]
    assert greys == pytest.approx([220, 0, 100, 0], abs=6)


@pytest.mark.parametrize(
    ("number", "rate", "fps", "expected"),
    [
        (12, 6.0, 2.0, [0, 4, 7, 11]),
        (12, 6.0, 3.0, [0, 2, 4, 7, 9, 11]),
        (300, 30.0, 2.0, [round(299 * place / 19) for place in range(20)]),
        (3, 30.0, 2.0, [0, 2]),  # a short one: fewer than four frames, an even number
        (1, 25.0, 2.0, [0, 0]),
    ],
)
def test_frames_are_at_equal_distances(number, rate, fps, expected):
    assert choose_frames(number, rate, fps) == expected


@given(st.integers(1, 200_000), st.floats(1, 120), st.floats(0.1, 60))
def test_any_video_gives_an_even_number_of_its_frames(number, rate, fps):
    chosen = choose_frames(number, rate, fps)
    assert len(chosen) % 2 == 0
    assert 2 <= len(chosen) <= 768
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] == number - 1


def test_the_more_frames_the_smaller():
    assert frame_budget(4) == (128 * UNIT, 768 * UNIT)
    assert frame_budget(768) == (128 * UNIT, 300 * UNIT)


def test_a_still_video_is_its_picture_at_every_step():
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    pixels, grid = process_frames([picture] * 4, PROCESSOR, budget=(UNIT, 100 * UNIT))
    expected, of_image = process_image(picture, PROCESSOR, (UNIT, 100 * UNIT))
    assert grid.tolist() == [[2, *of_image[0, 1:].tolist()]]
    assert torch.equal(pixels, torch.cat([expected, expected]))


def test_a_patch_holds_two_frames_one_after_the_other_in_each_channel():
    pixels, grid = process_frames([grey(value) for value in (0, 255, 51, 102)], PROCESSOR, budget=(UNIT, 100 * UNIT))
    assert grid.tolist() == [[2, 4, 6]]
    shown = pixels.view(2, 24, 3, 2, 196)
    for step, pair in enumerate(((0, 255), (51, 102))):
        for place, value in enumerate(pair):
            for channel, (mean, std) in enumerate(zip(PROCESSOR.image_mean, PROCESSOR.image_std, strict=True)):
                expected = torch.full((24, 196), (value / 255 - mean) / std)
                torch.testing.assert_close(shown[step, :, channel, place], expected)


def test_a_reduced_model_sees_a_video_file(file):
    pixels, grid, seconds = process_video(file, PROCESSOR)
    assert seconds == 1.0
    assert grid[0, 0] == 2
    per_step = int(grid[0, 1:].prod()) // 4
    ids = torch.tensor([[1, START, *[VIDEO_TOKEN] * 2 * per_step, END, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    inputs |= {"video_grid_thw": grid, "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN).int()}
    inputs |= {"second_per_grid_ts": torch.tensor([seconds])}
    model = tiny_qwen()
    with vscan.reduce(model, visual_tokens=10, layers={2: 3}) as reduction:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [segment.columns.shape[1] for segment in reduction.last.segments] == [20 + 5, 6 + 5]


def test_what_is_no_video_is_named(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*none\.mp4, found nothing"):
        process_video(tmp_path / "none.mp4", PROCESSOR)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: expected a whole video"):
        process_video(tmp_path / "text.mp4", PROCESSOR)
    (tmp_path / "half.mp4").write_bytes(file.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"half\.mp4: expected a"):
        process_video(tmp_path / "half.mp4", PROCESSOR)
    with pytest.raises(ValueError, match="expected an even number of frames of one size, got 3"):
        process_frames([grey(0)] * 3, PROCESSOR)
    with pytest.raises(ValueError, match=r"got 2 of sizes \[\(56, 56\), \(84, 56\)\]"):
        process_frames([grey(0), grey(0, (56, 56))], PROCESSOR)
