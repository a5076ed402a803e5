"""Frames of a video as pictures, by PyAV. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image


def read_frames(file: str | Path, choose: Callable[[int, float], Sequence[int]]) -> tuple[list[Image.Image], float]:
    """Read some frames of a video, as they are stored: a rotation that the file asks for is not done.

    Args:
        file: anything that FFmpeg reads.
        choose: from the number of frames and the frames in a second to the frames that are wanted, from 0; one that is
            named twice comes twice.

    Returns:
        The RGB pictures in the order that was asked for, and how many of these there are in a second of the video.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError: there is no such file.
        ValueError: it is not a video, or a frame that is wanted cannot be read.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("expected PyAV to read videos, found none: pip install 'vscan[video]'") from error
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a video file at {file}, found nothing there")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"{file}: expected a video, got a file without pictures")
            # Headers may not know the number of frames, or lie about it; packets are counted without decoding them.
            number = sum(packet.size > 0 for packet in container.demux(video=0))
            rate = float(container.streams.video[0].average_rate or 0)
        if not number or not rate:
            raise ValueError(f"{file}: expected a video with frames and a rate, got {number} frames, {rate:g} a second")
        wanted = list(choose(number, rate))
        frames, last = {}, max(wanted)
        with av.open(str(file)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = frame.to_image()
                if index == last:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{file}: expected a whole video that FFmpeg can read, got {error}") from error
    missing = sorted(set(wanted) - set(frames))
    if missing:
        raise ValueError(f"{file}: expected {number} frames, could not read frame {missing[0]}")
    return [frames[index] for index in wanted], rate * len(wanted) / number
