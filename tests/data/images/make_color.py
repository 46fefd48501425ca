"""Makes color.png, and color.expected.png of what torchvision makes of it. See README.md.

The argument is torchvision's wheel, or a folder of it: its functions for Pillow images are read from there and want nothing else of it, nor torch.
"""
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SIDE = 32


def torchvision():
    """The module `torchvision.transforms._functional_pil`, with what it imports of torch and torchvision replaced: types, a decorator, a helper."""
    name = "torchvision/transforms/_functional_pil.py"
    where = Path(sys.argv[1])
    source = (where / name).read_text() if where.is_dir() else zipfile.ZipFile(where).read(name).decode()
    torch, utils = types.ModuleType("torch"), types.ModuleType("torchvision.utils")
    torch.Tensor, torch.jit = object, types.SimpleNamespace(unused=lambda function: function)
    utils._Image_fromarray = lambda pixels, mode: Image.fromarray(pixels)
    for module in [torch, utils, types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")]:
        sys.modules[module.__name__] = module
    functions = {"__name__": "torchvision.transforms._functional_pil", "__package__": "torchvision.transforms"}
    exec(compile(source, name, "exec"), functions)
    return types.SimpleNamespace(**functions)


def picture():
    """Noise, dark and grey colours, colours whose hues are whole numbers, and the corners of the cube."""
    draw = np.random.default_rng(7)
    noise = draw.integers(0, 256, (8, SIDE, 3))
    dark = draw.integers(0, 12, (4, SIDE, 3))
    gray = draw.integers(0, 256, (6, SIDE, 1)) + draw.integers(-3, 4, (6, SIDE, 3))
    steps = [draw.integers(0, 255 // step + 1, (4, SIDE, 3)) * step for step in (5, 17, 85)]
    corners = draw.integers(0, 2, (2, SIDE, 3)) * 255
    rows = np.concatenate([noise, dark, gray, *steps, corners])
    return Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8))


def main():
    functions, rgb = torchvision(), picture()
    assert rgb.size == (SIDE, SIDE)
    gray = rgb.convert("L")
    brightness, contrast = functions.adjust_brightness, functions.adjust_contrast
    saturation, hue = functions.adjust_saturation, functions.adjust_hue
    # As in `color.rs`, in the same order.
    made = [brightness(rgb, factor) for factor in (0.0, 0.6, 1.0, 1.4)]
    made += [contrast(rgb, factor) for factor in (0.0, 0.5, 1.7)]
    made += [saturation(rgb, factor) for factor in (0.0, 0.4, 1.8)]
    made += [hue(rgb, factor) for factor in (0.0, 0.1, -0.1, 0.5, -0.5, -0.003)]
    made += [functions.to_grayscale(rgb, 3)]
    made += [saturation(contrast(hue(brightness(rgb, 1.2), 0.2), 0.8), 1.5)]
    made += [brightness(gray, 0.7), contrast(gray, 1.3), saturation(gray, 1.3), hue(gray, 0.3)]
    rgb.save(HERE / "color.png", optimize=True)
    stacked = np.concatenate([np.asarray(image.convert("RGB")) for image in made])
    Image.fromarray(stacked).save(HERE / "color.expected.png", optimize=True)


main()
