"""A video becomes the vision encoder's input as published: frames, their size, patches. Needs no torchvision.

Frames and sizes are chosen as qwen-vl-utils chooses them: two frames a second, an even number of at least four, and the
more of them the smaller.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vscan.io.frames import read_frames
from vscan.io.images import on_white, resize

from .images import UNIT, fit

FPS = 2.0
FRAMES = (4, 768)  # least and most; the temporal patch takes two at a time
BUDGET = (128, 768)  # of a frame, in units of 28 x 28 pixels
ALL_FRAMES = 115_200  # the same for all frames together


def choose_frames(number: int, rate: float, fps: float = FPS) -> list[int]:
    """Which frames of a video are seen.

    Args:
        number: frames that it has.
        rate: frames in a second.
        fps: frames in a second that are wanted.

    Returns:
        An even number of frames at equal distances, the first and the last among them; a video of one frame is seen
        twice.
    """
    least, most = FRAMES[0], min(FRAMES[1], number) // 2 * 2
    wanted = int(min(max(number / rate * fps, least), most, number)) // 2 * 2
    return torch.linspace(0, number - 1, max(2, wanted)).round().long().tolist()


def frame_budget(num_frames: int) -> tuple[int, int]:
    """Least and most pixels of a frame where so many are seen."""
    most = max(min(BUDGET[1], ALL_FRAMES / num_frames * 2), int(BUDGET[0] * 1.05))
    return BUDGET[0] * UNIT, int(most * UNIT)


def process_frames(
    frames: list[Image.Image], image_processor, budget: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Resize the frames of a video and cut them into patches, two frames deep.

    Args:
        frames: pictures of one size, an even number of them; what is not RGB becomes it by `on_white`.
        image_processor: a Qwen2VLImageProcessorPil; what it knows of sizes is not used.
        budget: least and most pixels of a frame; None is what their number allows.

    Returns:
        pixel_values_videos float32 [patches, 3 * 2 * 14 * 14], video_grid_thw int64 [1, 3]: pairs of frames, patch
        rows, patch columns.

    Raises:
        ValueError: for an odd number of frames, or frames of different sizes.
    """
    sizes = {frame.size for frame in frames}
    if not frames or len(frames) % 2 or len(sizes) > 1:
        raise ValueError(f"expected an even number of frames of one size, got {len(frames)} of sizes {sorted(sizes)}")
    side = image_processor.patch_size * image_processor.merge_size
    size = fit(*frames[0].size, budget or frame_budget(len(frames)), side)
    frames = [resize(on_white(frame), *size) for frame in frames]
    made = image_processor(frames, do_resize=False, return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    # The processor shows each picture as a pair of itself; of two such pairs, the halves make the pair of both.
    pairs = made["pixel_values"].view(len(frames) // 2, 2, rows * columns, 3, 2, -1)
    patches = torch.stack((pairs[:, 0, :, :, 0], pairs[:, 1, :, :, 1]), dim=3)
    return patches.flatten(0, 1).flatten(1), torch.tensor([[len(frames) // 2, rows, columns]])


def process_video(file: str | Path, image_processor, fps: float = FPS) -> tuple[Tensor, Tensor, float]:
    """Read a video and make of it what a Qwen2.5-VL takes.

    Args:
        file: anything that FFmpeg reads.
        image_processor: as for `process_frames`.
        fps: frames in a second that are wanted.

    Returns:
        pixel_values_videos, video_grid_thw, and the seconds between two pairs of frames (`second_per_grid_ts`).

    Raises:
        ImportError: without PyAV.
        FileNotFoundError, ValueError: for a file that is no video.
    """
    frames, rate = read_frames(file, lambda number, rate: choose_frames(number, rate, fps))
    return *process_frames(frames, image_processor), 2 / rate
