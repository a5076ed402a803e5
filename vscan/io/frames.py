"""Frames of a video as pictures, by PyAV. Imports no torch."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from ..eval.questions import image_file

ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # of a clip's file, in the order in which they are looked for
PREFIXES = ("", "v_")  # of a clip's file before the question's name: ActivityNet has the second
OTHERS = (".webm", ".m4v", ".mpg", ".mpeg")  # of files that are given by their whole name
AT_ONCE = 3  # names that a message has room for


def read_frames(
    file: str | Path, choose: Callable[[int, float], Sequence[int]], timed: bool = True
) -> tuple[list[Image.Image], float]:
    """Read some frames of a video, as they are stored: a rotation that the file asks for is not done.

    Args:
        file: anything that FFmpeg reads.
        choose: from the number of frames and the frames in a second to the frames that are wanted, from 0; one that is
            named twice comes twice.
        timed: whether the video must have a rate; where it has none and need not, `choose` gets 0.

    Returns:
        The RGB pictures in the order that was asked for, and how many of these there are in a second of the video.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError: there is no such file.
        ValueError: it is not a video or not a whole one, or a frame that is wanted cannot be read.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("expected PyAV to read videos, found none: pip install 'vscan[video]'") from error
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a video file at {file}, found nothing there")
    try:
        with av.open(str(file)) as container:
            number, rate = _measure(container, file)
        if not number or not (rate or not timed):
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
        raise ValueError(f"{file}: expected a whole video that FFmpeg can read, got {error.strerror}") from error
    missing = sorted(set(wanted) - set(frames))
    if missing:
        raise ValueError(f"{file}: expected {number} frames, could not read frame {missing[0]}")
    return [frames[index] for index in wanted], rate * len(wanted) / number


def _measure(container, file: str | Path) -> tuple[int, float]:
    """Number and rate of a video's frames. Headers may not know the number: packets are counted without decoding them.

    Raises:
        ValueError: for a file without moving pictures, or with fewer than its header says: it was cut.
    """
    from av.stream import Disposition

    streams = container.streams.video
    # The cover of a piece of music is a picture, and no video.
    if not streams or Disposition.attached_pic in streams[0].disposition:
        raise ValueError(f"{file}: expected a video, got a file without moving pictures")
    stream, number, num_whole, starts = streams[0], 0, 0, []
    for packet in container.demux(video=0):
        if packet.size:
            number += 1
            num_whole += not packet.is_corrupt
            starts += [] if packet.pts is None else [float(packet.pts * packet.time_base)]
    rate = float(stream.average_rate or 0)
    promised = max(stream.frames, number)
    seconds, starts = _seconds(stream.metadata.get("DURATION", "")), sorted(starts)
    # The last frame is seen for as long as another one, at most.
    longest = max((late - early for early, late in pairwise(starts)), default=seconds)
    if num_whole < promised or (starts and seconds - starts[-1] > 1.5 * longest):
        promised = max(promised, round(seconds * rate))
        raise ValueError(f"{file}: expected a whole video, got {num_whole} of {promised} frames: was the file cut?")
    return number, rate


def is_clip(file: str | Path) -> bool:
    """Whether a file is a clip rather than a picture, by its name."""
    return Path(file).suffix.lower() in ENDINGS + OTHERS


def check_sees_clips(checkpoint) -> None:
    """Raise ValueError for a checkpoint (`vscan.io.load.Checkpoint`) whose model is not asked about clips."""
    if not getattr(checkpoint, "sees_clips", False):
        raise ValueError(
            f"model path {checkpoint.folder!r}: expected a Video-LLaVA (mm_video_tower in its config, or the model "
            f"type video_llava) to ask about clips, got model_type {checkpoint.config.get('model_type')!r}"
        )


def _seconds(text: str) -> float:
    """What Matroska says of a stream's length, such as 00:00:02.040000000; 0 for anything else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class ClipFolder:
    """Where a question's clip is: in a file under `folder`, of the question's `video` and one of the usual endings.

    Args:
        folder: that the names are relative to.
        prefixes: what a file's name may have before the question's; the first that is there counts.
    """

    folder: str
    prefixes: tuple[str, ...] = ("",)

    def __call__(self, question: dict) -> str | None:
        """The file's path, of a clip that is not there its first one; None for a question without a clip.

        Raises:
            ValueError: for a name that leaves the folder.
        """
        if not question.get("video"):
            return None
        named = image_file(self.folder, question["video"], "video")
        places = [named.with_name(f"{prefix}{named.name}{end}") for prefix in self.prefixes for end in ENDINGS]
        return str(next((place for place in places if os.path.isfile(place)), places[0]))

    def missing(self, questions: Iterable[dict]) -> dict[str, None]:
        """The names of clips that are not there, in the order of the questions.

        Raises:
            FileNotFoundError: if the folder is none.
            ValueError: for a name that leaves the folder.
        """
        if not os.path.isdir(self.folder):
            raise FileNotFoundError(f"video folder: expected a folder, found none at {str(self.folder)!r}")
        names = dict.fromkeys(question["video"] for question in questions if question.get("video"))
        return dict.fromkeys(name for name in names if not os.path.isfile(self({"video": name})))

    def check(self, questions: list[dict]) -> None:
        """Check, before any model is loaded, that the clips that the questions name are in the folder.

        Raises:
            FileNotFoundError: if clips are missing.
            ValueError: for a name that leaves the folder.
        """
        missing = list(self.missing(questions))
        if missing:
            number = len({question["video"] for question in questions if question.get("video")})
            some = ", ".join(missing[:AT_ONCE]) + ", ..." * (len(missing) > AT_ONCE)
            raise FileNotFoundError(
                f"video folder {str(self.folder)!r}: expected the {number} clips that the questions name "
                f"({', '.join(ENDINGS)}), {len(missing)} are missing: {some}"
            )
