"""Replicas of `tf.distribute` get together the batches of a single process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from keras_deeplab import data

# Two devices must be asked for before TensorFlow starts, so all of this runs in processes.
CODE = """
import json, sys
from keras_deeplab import data

kind, batch_size = sys.argv[1], int(sys.argv[2])
if kind == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
else:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
train = data.training_dataset(
    data.Shapes(train=10, val=1), crop_size=(8, 8), batch_size=batch_size, repeat=True,
    first_step=1,
)
iterator, found = iter(strategy.experimental_distribute_dataset(train)), []
for _ in range(4):
    images, _ = next(iterator)
    parts = strategy.experimental_local_results(images)
    found.append([[image.tobytes().hex() for image in part.numpy()] for part in parts])
# Images are drawn ahead in Python: an iterator that is left to the end of the process waits for a
# thread which the interpreter has stopped.
del iterator
print(json.dumps(found))
"""


def start(kind: str, batch_size: int, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, kind, str(batch_size)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(data.__file__).parents[2]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(processes: list[subprocess.Popen]) -> list:
    """What each process found: for each step, for each of its replicas, the images."""
    try:
        done = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, done, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in done]


def joined(parts: list[list[str]]) -> list[str]:
    return [image for part in parts for image in part]


def single_process(batch_size: int) -> list[list[str]]:
    train = data.training_dataset(
        data.Shapes(train=10, val=1),
        crop_size=(8, 8),
        batch_size=batch_size,
        repeat=True,
        first_step=1,
    )
    return [
        [image.tobytes().hex() for image in images]
        for images, _ in train.take(4).as_numpy_iterator()
    ]


@pytest.mark.slow
def test_two_replicas_share_each_batch():
    (found,) = answers([start("mirrored", 5)])
    assert [len(part) for part in found[0]] == [3, 2]
    assert [joined(parts) for parts in found] == single_process(5)


@pytest.mark.slow
def test_two_workers_share_each_batch():
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    cluster = [
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        for index in range(2)
    ]
    found = answers([start("workers", 4, TF_CONFIG=json.dumps(config)) for config in cluster])
    together = [joined(one + other) for one, other in zip(*found, strict=True)]
    assert all(len(parts[0]) == 2 for worker in found for parts in worker)
    assert together == single_process(4)
