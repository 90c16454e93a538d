"""A classifier that answers many senders at once.

Pictures are decoded by a few threads and computed by one, which takes as many as are waiting: a lone picture never
waits for company, and batches grow with the load. The engine begins in plain PyTorch and changes to the fastest backend
that agrees as soon as that is known and compiled.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lenext.classifier import AUTO, Classifier, Prediction, pixels_of
from lenext.data.decode import UnreadableImage
from lenext.data.reading import THREADS
from lenext.data.transforms import eval_transform
from lenext.inference.backends import PLAIN, Backend, make_backend
from lenext.inference.choose import SAME, remembered_backend
from lenext.serving.measure import Measurement
from lenext.serving.room import Room

log = logging.getLogger("lenext")

# Nobody should wait long for others: a batch takes no more than about this many seconds, unless it is a small one.
BATCH_SECONDS = 0.04
SMALLEST_LIMIT, LARGEST_BATCH = 4, 32
# So many of the first pictures are what the backends are measured with.
SAMPLE = 16
CHOOSING = threading.Lock()  # engines that measure at the same time would measure each other
ROOM = Room()  # for the pictures that all engines decode
Waiting = tuple[Tensor, "Future[np.ndarray]"]


class Busy(Exception):
    """The queue is full or the server is stopping. seconds: after which a sender should try again."""

    def __init__(self, reason: str, seconds: int) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Engine:
    """One classifier with its queue.

    backend: a name of `lenext.inference.backends.NAMES`, made before the engine answers, or auto.
    tolerance: how far the answers of a backend that auto chooses may be from float32, as a share of the outputs' norm.
    most_waiting: pictures accepted and not yet answered; more are turned away with Busy.

    `on_batch` is called with the size of every batch and the seconds that it took.
    """

    def __init__(
        self,
        classifier: Classifier,
        name: str,
        *,
        backend: str = AUTO,
        tolerance: float = SAME,
        most_waiting: int = 1024,
    ) -> None:
        self.classifier, self.name, self.most_waiting = classifier, name, most_waiting
        self.waiting = 0
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self._tolerance = tolerance
        self._transform = eval_transform(classifier.preprocess)
        self.backend = PLAIN if backend == AUTO else backend
        self._run = classifier.backend(self.backend, self._blank(1), 1, tolerance)
        self._seconds, self._largest = 0.0, SMALLEST_LIMIT  # of a picture, and what fits then
        self._closed, self._free = False, threading.Condition()
        self._decoded: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._sample: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self._wants_sample = backend == AUTO
        self._measurement: Measurement | None = None
        self._measuring = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=f"decode-{name}")
        self._worker = threading.Thread(target=self._work, name=f"compute-{name}", daemon=True)
        self._chooser = threading.Thread(target=self._choose, name=f"choose-{name}", daemon=True)
        self._worker.start()

    def choose(self) -> None:
        """Begin to look for the fastest backend, where auto was asked for; it takes the time of other things."""
        if self._wants_sample:
            self._chooser.start()

    async def answer(
        self, data: bytes, top_k: int = 5, threshold: float | None = None, *, image: str = ""
    ) -> Prediction:
        """The ranked classes of one encoded picture, as Classifier.predict has them; its `error` says why there are
        none. Can be awaited in any event loop. Raises Busy."""
        return (await self.answers([(image, data)], top_k, threshold))[0]

    async def answers(
        self, pictures: Sequence[tuple[str, bytes]], top_k: int = 5, threshold: float | None = None
    ) -> list[Prediction]:
        """The same for several pictures, (name, bytes) each: all of them are accepted or none. Raises Busy."""
        futures = self.submit([data for _, data in pictures])
        rows = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        predictions = []
        for (image, _), row in zip(pictures, rows):
            if isinstance(row, UnreadableImage):
                predictions.append(self.classifier.failed(image, str(row)))
            elif isinstance(row, BaseException):
                raise row
            else:
                predictions.append(self.classifier.ranked(image, row, top_k, threshold))
        return predictions

    def submit(self, pictures: Sequence[bytes]) -> list[Future[np.ndarray]]:
        """A future of the probabilities (K,) of every picture; it raises UnreadableImage. Raises Busy."""
        with self._free:
            if self._closed:
                raise Busy("the server is stopping", 10)
            if self.waiting + len(pictures) > self.most_waiting:
                seconds = math.ceil(min(max(self.waiting * self._seconds, 1), 60))
                raise Busy(f"{self.waiting} pictures are waiting already", seconds)
            self.waiting += len(pictures)
        futures: list[Future[np.ndarray]] = []
        for data in pictures:
            future: Future[np.ndarray] = Future()
            future.add_done_callback(self._answered)
            futures.append(future)
            self._pool.submit(self._read, data, future)
        return futures

    def close(self) -> None:
        """Accept nothing more, and return when all that was accepted is answered and no measurement is left."""
        with self._free:
            self._closed = True
            if self._measurement is not None:
                self._measurement.stop()
            self._free.wait_for(lambda: self.waiting == 0)
        self._pool.shutdown()
        self._decoded.put(None)
        self._worker.join()
        with self._measuring:  # it is stopped, but has its process and its folder to clear away
            pass

    @property
    def is_accepting(self) -> bool:
        """Whether a picture would be taken now."""
        return not self._closed and self.waiting < self.most_waiting

    @property
    def is_choosing(self) -> bool:
        """Whether a thread still looks for the fastest backend."""
        return self._chooser.is_alive()

    # ---- the threads

    def _answered(self, _: Future[np.ndarray]) -> None:
        with self._free:
            self.waiting -= 1
            self._free.notify_all()

    def _read(self, data: bytes, future: Future[np.ndarray]) -> None:
        if not future.set_running_or_notify_cancel():
            return  # the sender has gone
        try:
            with ROOM.of(data):
                x = self._transform(pixels_of(data, self.classifier.preprocess))
        except UnreadableImage as error:
            future.set_exception(UnreadableImage(str(error)))  # a new one: its trace would keep the bytes in memory
        except Exception as error:
            future.set_exception(error)
        else:
            self._decoded.put((x, future))

    def _work(self) -> None:
        waiting: deque[Waiting] = deque()
        while True:
            if not waiting:
                item = self._decoded.get()
                if item is None:  # comes after everything is answered
                    return
                waiting.append(item)
            while not self._decoded.empty():
                item = self._decoded.get()
                assert item is not None
                waiting.append(item)
            # Powers of two: libraries prepare themselves for every size anew.
            size = min(1 << (len(waiting).bit_length() - 1), self._largest)
            self._compute([waiting.popleft() for _ in range(size)])

    def _compute(self, batch: list[Waiting]) -> None:
        begin = time.perf_counter()
        try:
            x = torch.stack([x for x, _ in batch])
            rows = self.classifier.probabilities(x, self._run)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # one of them is to blame, not the others
                for item in batch:
                    self._compute([item])
            return
        seconds = time.perf_counter() - begin
        self._adapt(len(batch), seconds)
        self.on_batch(len(batch), seconds)
        for (_, future), row in zip(batch, rows):
            future.set_result(row)
        if self._wants_sample and self._sample.qsize() < SAMPLE:
            for picture in x:
                self._sample.put(picture)

    def _adapt(self, size: int, seconds: float) -> None:
        """Let batches be as large as BATCH_SECONDS allows at the speed of late."""
        self._seconds = 0.8 * (self._seconds or seconds / size) + 0.2 * seconds / size
        fitting = int(min(max(BATCH_SECONDS / self._seconds, SMALLEST_LIMIT), LARGEST_BATCH))
        self._largest = 1 << (fitting.bit_length() - 1)

    def _choose(self) -> None:
        """Change to the fastest backend that agrees: the one remembered, else by measuring with the first pictures."""
        try:
            classifier = copy.deepcopy(self.classifier)  # converting a network must not disturb one that answers
            model, preprocess = classifier.model, classifier.preprocess
            with CHOOSING:
                found = remembered_backend(model, preprocess, self._blank(SAMPLE), tolerance=self._tolerance)
            if found is None:
                sample = torch.stack([self._sample.get() for _ in range(SAMPLE)])
                with CHOOSING:
                    name = self._measure(classifier, sample)
                    found = name, make_backend(name, model, preprocess)
            if found[0] != PLAIN:
                self._change(*found)
        except Exception as error:  # the server answers all the same
            if not self._closed:
                log.warning("%s goes on in %s: %s", self.name, PLAIN, error)
        finally:
            self._wants_sample = False

    def _measure(self, classifier: Classifier, sample: Tensor) -> str:
        """The name of the fastest backend. Raises OSError, also where the engine is closed before it is known."""
        with self._measuring:
            if self._closed:
                raise OSError("the server is stopping")
            measurement = Measurement(classifier, sample, self._tolerance)
            with self._free:
                self._measurement = measurement
                if self._closed:  # while it was made, when there was nothing to stop yet
                    measurement.stop()
            return measurement.result()

    def _change(self, name: str, run: Backend) -> None:
        size = 1
        while size <= LARGEST_BATCH:  # the first batch of a size takes long
            run(self._blank(size))
            size *= 2
        self._run, self.backend = run, name
        log.info("%s answers with %s", self.name, name)

    def _blank(self, size: int) -> Tensor:
        side = self.classifier.preprocess.image_size
        return torch.zeros(size, 3, side, side, dtype=torch.uint8)
