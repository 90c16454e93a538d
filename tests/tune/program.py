"""Stands in for the program: takes the command line of a trial and writes the run folder that training would.

Accuracy rises over the epochs towards a peak that is a known function of the settings, best at lr 0.01. What else it
does, the file `orders.json` in the folder of the data says: "fail" and "diverge" name trials, "hang" one that writes
its first epoch and then waits to be stopped, "seconds" how long an epoch takes.
"""

import json
import math
import signal
import sys
import time
from pathlib import Path


def read(file):
    """Settings, one a line; without a library, so that it starts in a moment."""
    settings = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition(": ")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


arguments = sys.argv[1:]
assert arguments[0] == "train"
if arguments[1] == "--resume":
    run = Path(arguments[2])
    settings = read(run / "config.yaml")
    data = settings["data"]
else:
    data = arguments[1]
    flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    run = Path(flags["--out"])
    run.mkdir()  # as the program, which takes no folder that has something in it
    settings = read(Path(flags["--config"])) | {"data": data}
    (run / "config.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()))
    (run / "data.json").write_text("{}")
orders = json.loads((Path(data) / "orders.json").read_text())
with open(Path(data) / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\n")
number = int(run.name)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if number in orders.get("fail", ()):
    sys.exit("lenext: the disk is full of cats")
peak = 0.9 - 0.2 * abs(math.log10(settings["lr"] / 0.01)) - 2 * abs(settings.get("label_smoothing", 0) - 0.1)
epochs = settings["epochs"]
metrics = run / "metrics.jsonl"
begun = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(begun + 1, epochs + 1):
    time.sleep(orders.get("seconds", 0))
    if number in orders.get("diverge", ()):
        sys.exit("lenext: the loss is not a number at step 1 of epoch 1: the training diverged. Take a lower --lr")
    accuracy = max(peak * (1 - 0.5 ** (5 * epoch / epochs)), 0)
    with open(metrics, "a") as file:
        file.write(json.dumps({"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy}) + "\n")
    if number == orders.get("hang") and arguments[1] != "--resume":
        time.sleep(60)
for name in ("classifier.safetensors", "checkpoint.safetensors", "report.html", "train.log"):
    (run / name).write_text("")
(run / "figures").mkdir(exist_ok=True)
