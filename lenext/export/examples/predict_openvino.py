"""The classes of pictures by model.xml, a line of JSON each: python predict.py PICTURE...

Needs openvino and Pillow. Resizing, cropping, normalising and calibration are inside the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent
ABOUT = json.loads((FOLDER / "preprocess.json").read_text(encoding="utf-8"))


def read(path):
    """uint8 (1, H, W, 3): RGB, the right way up, on white where it is transparent."""
    file = Image.open(path)
    file.draft(None, (ABOUT["resize"], ABOUT["resize"]))  # large JPEGs are decoded at a half, a quarter, an eighth
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))[None]


# Some processors would compute with 16 bits if not asked for 32.
model = openvino.compile_model(FOLDER / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sys.argv[1:]:
    probabilities = model(read(path))[0][0]
    top = [(ABOUT["classes"][i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:5]]
    print(json.dumps({"image": path, "label": top[0][0], "probability": top[0][1], "top": top}, ensure_ascii=False))
