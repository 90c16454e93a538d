"""The allocator in processes of its own: what it is told shows in the pages that the system has to hand out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lenext.training import allocator

linux = pytest.mark.skipif(
    sys.platform != "linux" or not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"), reason="needs glibc"
)
# A block as large as a layer's outputs, touched and freed again and again: pages handed out after the first time.
FAULTS = """
import resource
def faults(blocks=10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        bytearray(b"x") * (48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def environment(**changes):
    names = ("GLIBC_TUNABLES", "LD_PRELOAD")
    kept = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("MALLOC_")}
    return kept | {"PYTHONPATH": str(Path(allocator.__file__).parents[2])} | changes


def python(program, **changes):
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**changes), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
def test_kept_memory_is_not_asked_for_again_until_it_is_released():
    plain, kept, released = python(
        FAULTS
        + """
import json
from lenext.training import allocator
faults(1); before = faults()
allocator.keep_memory()
faults(1); kept = faults()
allocator.release_memory()
print(json.dumps([before, kept, faults()]))
"""
    )
    assert 10 * (kept + 10) < min(plain, released)  # far fewer, even where every process gets huge pages


@linux
def test_a_fork_and_a_limit_on_addresses_do_no_harm():
    limited, forked = python(
        FAULTS
        + """
import json, os, resource
from lenext.training import allocator
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
allocator.keep_memory()
faults(1); limited = faults()
bytearray(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
allocator.keep_memory()
child = os.fork()
if not child:
    os._exit(len(bytearray(b"y") * (48 << 20)) != 48 << 20)
print(json.dumps([limited, os.waitpid(child, 0)[1]]))
"""
    )
    assert limited < 100  # of 12288 a block
    assert forked == 0


@linux
def test_scarce_memory_is_given_back_and_said_once(monkeypatch, caplog):

    monkeypatch.setattr(allocator, "_keeping", True)
    monkeypatch.setattr(allocator, "memory", lambda: (11, 100))
    caplog.set_level("INFO", logger="lenext")
    allocator.release_if_scarce()
    assert allocator._keeping
    monkeypatch.setattr(allocator, "memory", lambda: (9, 100))
    allocator.release_if_scarce()
    allocator.release_if_scarce()
    released = [record for record in caplog.records if "given back" in record.message]
    assert len(released) == 1
    assert not allocator._keeping


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("4:memory:/job/1", {
            "memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "700",
            "memory/job/memory.stat": "cache 300\ntotal_inactive_file 200\n",
            "memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "0",
            "memory/memory.stat": "",
        }),
        ("0::/job/1", {
            "job/1/memory.max": "max", "job/1/memory.current": "700", "job/1/memory.stat": "",
            "job/memory.max": "1000", "job/memory.current": "700", "job/memory.stat": "inactive_file 200\n",
        }),
    ],
    ids=["version 1", "version 2"],
)  # fmt: skip
def test_a_containers_limit_counts(tmp_path, monkeypatch, line, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "groups").write_text(line + "\n")
    monkeypatch.setattr(allocator, "CONTROL_GROUPS", (tmp_path / "groups", tmp_path))
    assert allocator.memory() == (500, 1000)
    (tmp_path / "groups").unlink()
    available, total = allocator.memory()
    assert 1000 < available <= total


@linux
def test_the_peak_is_of_this_process_and_stays():
    held = bytearray(b"x") * (512 << 20)  # by the process that starts it, which does not count
    before, after = python("""
import json, types
from lenext.training.allocator import peak_memory
cpu = types.SimpleNamespace(type="cpu")
before = peak_memory(cpu)
bytearray(b"x") * (256 << 20)
print(json.dumps([before, peak_memory(cpu)]))
""")
    assert 0 < before < len(held)
    assert 240 << 20 < after - before < 300 << 20


def test_the_peak_is_known_without_linux_and_without_posix(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    known = allocator.peak_memory(cpu)
    monkeypatch.setattr(allocator, "STATUS", tmp_path / "none")
    assert allocator.peak_memory(cpu) >= known
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0 < allocator.peak_memory(cpu) <= 1.1 * known


def test_the_peak_on_a_gpu_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    assert allocator.peak_memory(torch.device("cuda", 3)) == 1003
