"""Stands in for the program: takes the command line of a run and writes the run folder that training would.

Accuracy is a known function of settings and seed. The file `orders.json` beside the data says what else it does: "fail"
and "diverge" name runs by cell and seed, "seconds" how long an epoch takes. What it was asked and how many were at work
is noted in `calls.jsonl`.
"""

import fcntl
import json
import os
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
            settings[name] = value.strip("'")
    return settings


def note(entry):
    with open(orders_file.with_name("calls.jsonl"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(entry) + "\n")


arguments = sys.argv[1:]
assert arguments[0] == "train"
resumed = arguments[1] == "--resume"
if resumed:
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
    (run / "data.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
orders_file = Path(data).with_name("orders.json")
orders = json.loads(orders_file.read_text())
name = f"{run.parent.name}/{run.name}"
note({"run": name, "resumed": resumed, "begin": time.time(), "threads": os.environ.get("OMP_NUM_THREADS")})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if name in orders.get("fail", ()):
    sys.exit("lenext: the disk is full of cats")
if name in orders.get("diverge", ()):
    sys.exit("lenext: the loss is not a number at step 1 of epoch 1: the training diverged. Take a lower --lr")
accuracy = 0.5 + settings["lr"] + 0.01 * settings["seed"]
metrics = run / "metrics.jsonl"
begun = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(begun + 1, 4):
    time.sleep(orders.get("seconds", 0))
    row = {"epoch": epoch, "train_loss": 1.0, "train_accuracy": accuracy, "val_loss": 1.0, "val_accuracy": accuracy}
    with open(metrics, "a") as file:
        file.write(json.dumps({**row, "lr": 0.1, "seconds": 1.0, "images_per_second": 10.0}) + "\n")
(run / "classifier.safetensors").write_text("")
figures = {"n": 100, "accuracy": accuracy, "top5": 1.0, "nll": 1.0, "ece": 0.0}
(run / "evaluation.json").write_text(json.dumps({"test": figures}))
(run / "report.html").write_text("")
note({"run": name, "end": time.time()})
