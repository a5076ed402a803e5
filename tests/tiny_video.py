"""A Video-LLaVA small enough to run anywhere, with random weights, in the original format, and clips for it."""

import json
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.video_encoder import TemporalCLIP
from playground.tiny import build_checkpoint as build_llava

TOWERS = {"LanguageBind_Image": CLIPVisionModel, "LanguageBind_Video_merge": TemporalCLIP}
TOKENS = 8 * (64 + 1)  # of a clip: 8 x 8 patches a frame, and [CLS]


def build_checkpoint(folder: Path, seed: int = 0, patch_size: int = 28) -> Path:
    """Write a checkpoint: the decoder and the tokenizer of the tiny LLaVA, and two towers of 8 x 8 patches inside.

    Args:
        folder: where it goes; what says how the towers are built lies inside.
        seed: of the weights.
        patch_size: pixels; 14 makes 16 x 16 patches, as published, and takes four times as long.
    """
    build_llava(folder, seed)
    config = json.loads((folder / "config.json").read_text())
    del config["mm_vision_tower"]
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4}
    vision |= {
        "image_size": 224,
        "patch_size": patch_size,
        "num_frames": 8,
        "add_time_attn": True,
        "hidden_act": "gelu",
    }
    weights = load_file(folder / "model.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, cls in TOWERS.items():
            kind = name.split("_")[1].lower()
            config[f"mm_{kind}_tower"] = name
            tower = cls(CLIPVisionConfig(**vision, initializer_factor=4.0))
            for key, value in tower.state_dict().items():
                value = value if "position_ids" in key or "norm" in key else torch.randn_like(value) * 0.2
                weights[f"model.{kind}_tower.{kind}_tower.{key.removeprefix('vision_model.')}"] = value.contiguous()
            (folder / name).mkdir()
            described = {"model_type": f"LanguageBind{kind.title()}", "vision_config": vision}
            (folder / name / "config.json").write_text(json.dumps(described))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    for file in (folder / "clip_tower").iterdir():
        file.unlink()
    (folder / "clip_tower").rmdir()
    return folder


def write_clip(file: Path, frames: list[Image.Image], rate: int = 10, **options: str) -> Path:
    """Write pictures as a clip, in MPEG-4.

    Args:
        file: whose ending says the container.
        frames: of one size, with even sides.
        rate: frames in a second.
        **options: of the container, such as movflags="faststart".
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *frames[0].size, "yuv420p", 4_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def write_sound(file: Path) -> Path:
    """Write a file with a second of silence and no picture."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for number in range(8):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            frame.planes[0].update(bytes(4 * 1024))
            frame.sample_rate, frame.pts = 8000, 1024 * number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def draw_clip(file: Path, seed: int, number: int = 12, size: tuple[int, int] = (96, 64)) -> Path:
    """Draw a square of some colour that moves over a ground of another one."""
    colours = torch.randint(0, 256, (2, 3), generator=torch.Generator().manual_seed(seed)).tolist()
    frames = []
    for step in range(number):
        frame = Image.new("RGB", size, tuple(colours[0]))
        frame.paste(tuple(colours[1]), (step * 3, seed % 20, step * 3 + 30, seed % 20 + 30))
        frames.append(frame)
    return write_clip(file, frames)
