"""The classes of pictures by model.pt2, a line of JSON each: python predict.py PICTURE...

Needs torch and Pillow. Resizing, cropping, normalising and calibration are inside the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from read_picture import read_picture

if len(sys.argv) == 1:
    print("usage: python predict.py PICTURE...", file=sys.stderr)
    sys.exit(2)
FOLDER = Path(__file__).parent
ABOUT = json.loads((FOLDER / "preprocess.json").read_text(encoding="utf-8"))

model = torch.export.load(FOLDER / "model.pt2").module()
for path in sys.argv[1:]:
    image = path.encode(errors="backslashreplace").decode()  # it may hold bytes that are no text
    try:
        picture = read_picture(path, ABOUT["resize"])
    except Exception as error:  # Pillow raises many kinds
        nothing = {"image": image, "label": None, "probability": None, "top": (), "error": str(error)}
        print(json.dumps(nothing | ({"labels": ()} if "threshold" in ABOUT else {}), ensure_ascii=False))
        continue
    probabilities = model(torch.from_numpy(picture))[0].detach().numpy()
    ranked = [(ABOUT["classes"][i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")]
    top = [{"label": label, "probability": probability} for label, probability in ranked[:5]]
    answer = {"image": image, **top[0], "top": top, "error": None}
    if "threshold" in ABOUT:  # of several labels, all that are likely enough
        answer["labels"] = [label for label, probability in ranked if probability >= ABOUT["threshold"]]
    print(json.dumps(answer, ensure_ascii=False))
