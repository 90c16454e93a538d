"""The classes of pictures by model.onnx, a line of JSON each: python predict.py PICTURE...

Needs onnxruntime and Pillow. Resizing, cropping, normalising and calibration are inside the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from read_picture import read_picture

FOLDER = Path(__file__).parent
ABOUT = json.loads((FOLDER / "preprocess.json").read_text(encoding="utf-8"))

model = onnxruntime.InferenceSession(FOLDER / "model.onnx")
for path in sys.argv[1:]:
    probabilities = model.run(None, {"pictures": read_picture(path, ABOUT["resize"])})[0][0]
    top = [(ABOUT["classes"][i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:5]]
    print(json.dumps({"image": path, "label": top[0][0], "probability": top[0][1], "top": top}, ensure_ascii=False))
