"""The server beside its peers: requests a second that are answered in time, over HTTP, from JPEG files to labels.

    python benchmarks/serving.py [--peers FOLDER] [--models tf_efficientnet_lite0 resnet50] [--only NAME...]
        [--rounds 3] [--seconds 6]
    python benchmarks/serving.py --report

Goodput is the highest rate of requests, arriving at random moments (Poisson), of which 99 % are answered rightly within
100 ms; a rate is doubled until that fails twice, and then narrowed down. A latency counts from the moment at which a
request was due, not from when it could be sent. Throughput is what 64 senders get who each wait for their answer, and
its ratio to the offline rate is to that of Classifier.stream on the same files with the same backend. Requests come
from a process of their own on the same machine, so that they take their share of its cores from every side alike.

Every side has the same network with the same weights, random ones where no package has better. FastAPI is the usual
tutorial: a sync endpoint, run in its thread pool, Pillow, torchvision's transforms, eager PyTorch in float32. LitServe
and BentoML are the same in their own frames, with their defaults. A peer that is not installed is left out: pip install
litserve; BentoML wants other versions of much and has an environment of its own, FOLDER/bentoml, with LeNeXt in it too:

    python -m venv FOLDER/bentoml && FOLDER/bentoml/bin/pip install . bentoml

The sides take turns, forwards and backwards. Finished measurements stay in benchmarks/results/serving.jsonl and are not
made again; serving.md is written from them. Run it on a quiet machine. The pictures are those of benchmarks/data.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODELS = ("tf_efficientnet_lite0", "resnet50")
PICTURES = 256
LIMIT, SHARE = 0.1, 0.99  # seconds, and how many of the requests must be answered within
SENDERS = 64
SKIPPED = 128  # pictures before the offline rate counts: whole batches
STEPS = 4  # of narrowing down: to a sixteenth of the last doubling
START_SECONDS = 120.0
OURS, LOOSE = "LeNeXt", "LeNeXt, --tolerance 0.01"


# ------------------------------------------------------------------------------------------------------ the sides


@dataclass(frozen=True)
class Side:
    package: str
    path: str
    field: str
    setting: str


SIDES = {
    OURS: Side("lenext", "/v1/predict", "file", "defaults"),
    LOOSE: Side("lenext", "/v1/predict", "file", "bfloat16 where it agrees to 1 %"),
    "FastAPI": Side("fastapi", "/predict", "file", "sync endpoint, eager float32"),
    "LitServe": Side("litserve", "/predict", "file", "defaults, eager float32"),
    "BentoML": Side("bentoml", "/predict", "file", "defaults, eager float32"),
}


class ByHand:
    """What a tutorial would write around a network."""

    def __init__(self, classifier: str) -> None:
        import torch
        from torchvision.transforms import v2

        import lenext

        loaded = lenext.load(classifier)
        preprocess = loaded.preprocess
        self.model, self.classes = loaded.model.eval(), loaded.classes
        self.transform = v2.Compose(
            [
                v2.Resize(preprocess.resize),
                v2.CenterCrop(preprocess.image_size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(preprocess.mean), list(preprocess.std)),
            ]
        )

    def read(self, data: bytes) -> Any:
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def answer(self, x: Any) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            probability, index = self.model(x[None]).softmax(1)[0].max(0)
        return {"label": self.classes[int(index)], "probability": float(probability)}


def serve_fastapi(classifier: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, File

    by_hand, app = ByHand(classifier), FastAPI()

    @app.post("/predict")
    def predict(file: bytes = File()) -> dict[str, Any]:
        return by_hand.answer(by_hand.read(file))

    uvicorn.run(app, port=port, log_level="warning")


# Both start processes that import the service anew.
LITSERVE = """
class Api(litserve.LitAPI):
    def setup(self, device):
        self.by_hand = ByHand(CLASSIFIER)

    def decode_request(self, request):
        return self.by_hand.read(request["file"].file.read())

    def predict(self, x):
        return self.by_hand.answer(x)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(port=PORT, generate_client_file=False, log_level="warning")
"""
BENTOML = """
from pathlib import Path


@bentoml.service
class Service:
    def __init__(self):
        self.by_hand = ByHand(CLASSIFIER)

    @bentoml.api
    def predict(self, file: Path) -> dict:
        return self.by_hand.answer(self.by_hand.read(file.read_bytes()))
"""


def serve_apart(package: str, classifier: str, port: str) -> None:
    """Become the server of a peer that wants its service in a file."""
    folder = Path(tempfile.mkdtemp(prefix="lenext-benchmark-"))
    here = str(Path(__file__).parent)
    head = f"import sys\nsys.path.append({here!r})\nimport {package}\nfrom serving import ByHand\n"
    body = LITSERVE if package == "litserve" else BENTOML
    (folder / "service.py").write_text(head + body.replace("CLASSIFIER", repr(classifier)).replace("PORT", port))
    os.chdir(folder)
    run = ["service.py"] if package == "litserve" else ["-m", "bentoml", "serve", "service:Service", "--port", port]
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execv(sys.executable, [sys.executable, *run])


def python_of(side: str, peers: Path | None) -> Path:
    """The interpreter of a side."""
    own = peers / SIDES[side].package / "bin" / "python" if peers else Path()
    return own if own.is_file() else Path(sys.executable)


def command(side: str, classifier: Path, port: int, python: Path) -> list[str]:
    if side in (OURS, LOOSE):
        more = ["--tolerance", "0.01"] if side == LOOSE else []
        arguments = ["-m", "lenext.cli", "serve", str(classifier), "--port", str(port), "--no-page", *more]
    else:
        arguments = [__file__, "--serve", SIDES[side].package, str(classifier), str(port)]
    return [str(python), *arguments]


@contextlib.contextmanager
def served(side: str, classifier: Path, picture: bytes, python: Path) -> Iterator[int]:
    """The port of a server that answers already; RuntimeError with what it said last where it does not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(side, classifier, port, python), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = [line.strip() for line in log if line.strip()]
                    raise RuntimeError(lines[-1] if lines else "it said nothing")
                with contextlib.suppress(OSError):
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}{SIDES[side].path}",
                        form(SIDES[side].field, picture),
                        {"Content-Type": "multipart/form-data; boundary=x"},
                    )
                    if urllib.request.urlopen(request, timeout=30).status == 200:
                        break
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()  # some have processes that only they can end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def backend_of(side: str, port: int) -> str:
    """What answers; ours is waited for until it has chosen."""
    if side not in (OURS, LOOSE):
        return "pytorch-float32"
    found, deadline = "pytorch-float32", time.monotonic() + 60
    while found == "pytorch-float32" and time.monotonic() < deadline:  # which may be the choice
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/model") as answer:
            found = json.load(answer)["backend"]
    return found


# ------------------------------------------------------------------------------------------------------- the load


def form(field: str, data: bytes) -> bytes:
    head = (
        f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return head.encode() + data + b"\r\n--x--\r\n"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the process of the senders is told. rate: requests a second at random moments; 0: `SENDERS` who wait."""

    side: str
    port: int
    data: str
    rate: float
    seconds: float


class Senders:
    """Connections that are kept, as many as there are requests at a time."""

    def __init__(self, load: Load) -> None:
        side = SIDES[load.side]
        files = sorted(Path(load.data).rglob("*.jpg"))
        self.load, self.idle, self.next = load, list[Any](), 0
        self.requests = []
        for body in (form(side.field, file.read_bytes()) for file in files):
            head = f"POST {side.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            self.requests.append(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)

    async def send(self, due: float) -> float:
        """Seconds from when it was due to the answer; infinite where there is none or an error."""
        request = self.requests[self.next % len(self.requests)]
        self.next += 1
        try:
            if self.idle:
                reader, writer = self.idle.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.load.port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return float("inf")
        self.idle.append((reader, writer))
        return time.perf_counter() - due if head.split()[1] == "200" else float("inf")

    async def at_random_moments(self) -> list[float]:
        rng, tasks = random.Random(0), []
        due = begin = time.perf_counter()
        while due < begin + self.load.seconds:
            await asyncio.sleep(max(0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.send(due)))
            due += rng.expovariate(self.load.rate)
        _, late = await asyncio.wait(tasks, timeout=10)
        for task in late:
            task.cancel()
        return [task.result() if task not in late else float("inf") for task in tasks]

    async def one_after_the_other(self) -> list[float]:
        end, latencies = time.perf_counter() + self.load.seconds, []

        async def sender() -> None:
            while (now := time.perf_counter()) < end:
                latencies.append(await self.send(now))

        await asyncio.gather(*(sender() for _ in range(SENDERS)))
        return latencies


def send(load: Load) -> None:
    """Print {"latencies", "seconds"}; runs in a process of its own."""
    import uvloop

    senders, begin = Senders(load), time.perf_counter()
    work = senders.at_random_moments() if load.rate else senders.one_after_the_other()
    latencies = uvloop.run(work)
    print(
        json.dumps({"latencies": [x if x < 1e9 else None for x in latencies], "seconds": time.perf_counter() - begin})
    )


def sent(load: Load) -> tuple[list[float], float]:
    """(latencies, seconds in all) of a load."""
    process = subprocess.run(
        [sys.executable, __file__, "--send", json.dumps(asdict(load))], capture_output=True, text=True, check=True
    )
    answer = json.loads(process.stdout)
    return [float("inf") if x is None else x for x in answer["latencies"]], answer["seconds"]


def quantile(latencies: list[float], share: float) -> float:
    return sorted(latencies)[min(int(share * len(latencies)), len(latencies) - 1)]


def goodput(side: str, port: int, data: Path, seconds: float) -> tuple[float, float]:
    """(highest rate that is answered in time, its median latency)."""

    def trial(rate: float) -> float | None:
        load = Load(side=side, port=port, data=str(data), rate=rate, seconds=max(seconds, 50 / rate))
        latencies, _ = sent(load)
        return statistics.median(latencies) if quantile(latencies, SHARE) <= LIMIT else None

    good, median, bad = 0.0, 0.0, 4.0
    while (found := trial(bad) or trial(bad)) is not None:
        good, median, bad = bad, found, 2 * bad
    for _ in range(STEPS if good else 0):
        middle = (good + bad) / 2
        if (found := trial(middle) or trial(middle)) is not None:
            good, median = middle, found
        else:
            bad = middle
    return good, median


def offline(classifier: str, data: str, backend: str, seconds: float) -> None:
    """Print pictures a second of Classifier.stream after the first batches; runs in a process of its own."""
    import lenext

    loaded = lenext.load(classifier)
    files = [str(file) for file in sorted(Path(data).rglob("*.jpg"))]
    ends: list[float] = []
    for prediction in loaded.stream(itertools.cycle(files), backend=backend):
        assert prediction.error is None
        ends.append(time.perf_counter())
        if len(ends) > SKIPPED and ends[-1] > ends[SKIPPED] + seconds and ends[-1] - ends[-2] > 1e-3:
            break  # at the end of a batch's time, as at the beginning
    print((len(ends) - 1 - SKIPPED) / (ends[-1] - ends[SKIPPED]))


def measure(side: str, classifier: Path, data: Path, seconds: float, python: Path) -> dict[str, Any]:
    picture = next(data.rglob("*.jpg")).read_bytes()
    with served(side, classifier, picture, python) as number:

        def closed(seconds: float) -> Load:
            return Load(side=side, port=number, data=str(data), rate=0.0, seconds=seconds)

        sent(closed(3))  # the first requests choose a backend, and warm up
        backend = backend_of(side, number)
        sent(closed(2))
        rate, median = goodput(side, number, data, seconds)
        latencies, spent = sent(closed(2 * seconds))
    answered = [x for x in latencies if x < float("inf")]
    row = {
        "goodput": rate,
        "median_ms": 1000 * median,
        "throughput": len(answered) / spent,
        "lost": len(latencies) - len(answered),
        "backend": backend,
    }
    if side in (OURS, LOOSE):
        arguments = ["--offline", str(classifier), str(data), backend, str(2 * seconds)]
        process = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
        row["offline"] = float(process.stdout)
    return row


def version_of(side: str, python: Path) -> str:
    """Raises RuntimeError where the package is not installed."""
    ask = f"import importlib.metadata; print(importlib.metadata.version({SIDES[side].package!r}))"
    if SIDES[side].package == "lenext":
        ask = "from lenext.version import __version__; print(__version__)"
    process = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError("not installed")
    return process.stdout.strip()


# ---------------------------------------------------------------------------------------------------------- main


def write_classifier(name: str, file: Path) -> None:
    """The network for the thousand classes of ImageNet."""
    import torch

    from lenext.classifier import Classifier, load
    from lenext.models import default_preprocess
    from lenext.models.pooled import build_network
    from lenext.models.weights import has_offline_weights

    if has_offline_weights(name):
        load(name).save(file)
        return
    torch.manual_seed(0)
    preprocess = default_preprocess(name)
    architecture = {"name": name, "num_outputs": 1000, "image_size": preprocess.image_size, "arguments": {}}
    classes = tuple(f"class {i}" for i in range(1000))
    Classifier(build_network(architecture), architecture, classes, preprocess).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of environments for peers that need their own")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=list(SIDES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of every trial of a rate")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for serving.jsonl and serving.md")
    parser.add_argument("--report", action="store_true", help="only write serving.md again")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    from lenext import runs

    file = args.results / "serving.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    machine = runs.environment()
    here = {key: machine[key] for key in ("processor", "cores", "memory_gib", "torch", "openvino")}
    here["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    if args.report:
        runs.write_text(args.results / "serving.md", report(rows))
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from data import make_pictures

    work = Path(tempfile.gettempdir()) / f"lenext-benchmark-serving-{PICTURES}"
    make_pictures(work / "pictures", PICTURES)
    failed = set()
    for model in args.models:
        classifier = work / f"{model}.safetensors"
        if not classifier.exists():
            write_classifier(model, classifier)
        for i in range(args.rounds):
            # Forwards and backwards in turn, so that a drift of the machine falls on all alike.
            for side in args.only if i % 2 == 0 else args.only[::-1]:
                about = {"side": side, "model": model, "round": i, "seconds": args.seconds, "machine": here}
                done = any(about.items() <= row.items() and "failed" not in row for row in rows)
                if done or (side, model) in failed:
                    continue
                try:
                    python = python_of(side, args.peers)
                    version = version_of(side, python)
                    row = about | measure(side, classifier, work / "pictures", args.seconds, python)
                    row["version"] = version
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    failed.add((side, model))
                    row = about | {"failed": str(error)}
                rows.append(row)
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                runs.write_text(args.results / "serving.md", report(rows))
                print({key: value for key, value in row.items() if key != "machine"}, flush=True)


def report(rows: list[dict[str, Any]]) -> str:
    if not rows:
        raise SystemExit("nothing has been measured yet")
    machine = rows[-1]["machine"]
    rows = [row for row in rows if row["machine"] == machine]
    threads = "" if machine["threads"] == "all" else f", OMP_NUM_THREADS={machine['threads']}"
    lines = [
        "# Serving beside its peers",
        "",
        f"On {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, torch "
        f"{machine['torch']}, OpenVINO {machine['openvino']}{threads}; requests come from the same machine. Made by "
        "`python benchmarks/serving.py`.",
        "",
        f"Goodput: the highest rate of requests at random moments of which {SHARE:.0%} are answered within "
        f"{1000 * LIMIT:.0f} ms, a JPEG file of about 110 KB each (0: not even four a second are); beside it the "
        "median latency at that rate. "
        f"Throughput: answers a second to {SENDERS} senders who each wait for theirs. Offline: pictures a second of "
        "`Classifier.stream` on the same files with the same backend. Medians of alternating rounds.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        measured: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["model"] == model and "failed" not in row:
                measured.setdefault(row["side"], []).append(row)
        lines += [
            "",
            f"## {model}",
            "",
            "| side | goodput | rounds | LeNeXt is | median, ms | throughput | of offline | lost | backend | setting "
            "| version |",
            f"| --- |{' --- |' * 10}",
        ]
        ours = median(measured[OURS], "goodput") if OURS in measured else None
        for side in sorted(measured, key=lambda side: -median(measured[side], "goodput")):
            found = measured[side]
            rates = [row["goodput"] for row in found]
            rate = median(found, "goodput")
            times = f"{ours / rate:.2f} times" if ours and rate and side != OURS else ""
            ratios = [row["throughput"] / row["offline"] for row in found if "offline" in row]
            lines.append(
                f"| {side} | {rate:.1f} ({min(rates):.1f} to {max(rates):.1f}) | {len(found)} | {times} "
                f"| {median(found, 'median_ms'):.0f} | {median(found, 'throughput'):.1f} "
                f"| {f'{statistics.median(ratios):.2f}' if ratios else ''} | {sum(row['lost'] for row in found)} "
                f"| {found[-1]['backend']} | {SIDES[side].setting} | {found[-1]['version']} |"
            )
    failures = {f"{row['side']}, {row['model']}": row["failed"] for row in rows if "failed" in row}
    if failures:
        lines += ["", "Left out:", "", *(f"- {name}: {reason}" for name, reason in failures.items())]
    return "\n".join([*lines, ""])


def median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--serve", "fastapi", classifier, port]:
            serve_fastapi(classifier, int(port))
        case ["--serve", package, classifier, port]:
            serve_apart(package, classifier, port)
        case ["--send", load]:
            send(Load(**json.loads(load)))
        case ["--offline", classifier, data, backend, seconds]:
            offline(classifier, data, backend, float(seconds))
        case _:
            main()
