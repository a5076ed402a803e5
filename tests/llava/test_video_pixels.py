"""Clips become pixels: which frames, how large, and which of a file's streams are clips at all."""

import av
import pytest
import torch
from PIL import Image
from tiny_video import draw_clip

from llava.video import ClipProcessor, choose_frames, crop, read_clip


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, [0] * 8),
        (5, [0, 0, 1, 1, 2, 2, 3, 4]),
        (8, list(range(8))),
        (20, [0, 2, 5, 8, 10, 13, 16, 19]),
        (5000, [0, 714, 1428, 2142, 2856, 3570, 4284, 4999]),
    ],
)
def test_eight_frames_are_seen_and_short_clips_repeat_them(number, expected):
    assert choose_frames(number) == expected


def test_half_a_pixel_goes_to_the_even_side():
    for side, left in ((305, 40), (307, 42), (309, 42), (224, 0)):
        row = torch.arange(float(side)).expand(1, 224, side)
        assert crop(row)[0, 0, 0] == left
        assert crop(row.transpose(1, 2)).shape == (1, 224, 224)


def test_pixels_are_normalised_and_resized_frame_by_frame():
    """A frame of one colour stays one colour; and the first is the first."""
    colours = [(10 * number, 20, 255) for number in range(8)]
    pixels = ClipProcessor().video([Image.new("RGB", (60, 45), colour) for colour in colours])
    assert pixels.shape == (3, 8, 224, 224)
    for number, colour in enumerate(colours):
        for channel, value in enumerate(colour):
            mean, std = ClipProcessor().image_mean[channel], ClipProcessor().image_std[channel]
            expected = torch.full((224, 224), (value / 255 - mean) / std)
            torch.testing.assert_close(pixels[channel, number], expected, rtol=0, atol=1e-6)


def test_a_clip_is_seen_as_it_is_stored_and_its_frames_are_of_one_size(tmp_path, monkeypatch):
    file = draw_clip(tmp_path / "c.mp4", seed=0, size=(96, 64))
    assert {frame.size for frame in read_clip(file)} == {(96, 64)}
    frames = [Image.new("RGB", size) for size in ((96, 64), (64, 96))]
    monkeypatch.setattr("llava.video.read_frames", lambda *args, **options: (frames, 1.0))
    with pytest.raises(ValueError, match=r"c\.mp4: expected frames of one size, got 64 x 96 and 96 x 64"):
        read_clip(file)


def test_a_clip_of_a_variable_rate_is_read_by_its_frames_and_not_by_time(tmp_path):
    """Greys of 0, 20, ...; the last but one is seen for most of the time."""
    file = tmp_path / "v.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 4_000_000
        for number in range(10):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (20 * number,) * 3))
            frame.pts = number + 40 * (number == 9)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    greys = [frame.getpixel((30, 30))[0] for frame in read_clip(file)]
    assert greys == pytest.approx([20 * number for number in (0, 1, 2, 3, 5, 6, 7, 9)], abs=6)


def test_the_cover_of_a_piece_of_music_is_no_clip(tmp_path):
    file = tmp_path / "cover.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        for packet in [*stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(ValueError, match="expected a video, got a file without moving pictures"):
        read_clip(file)
