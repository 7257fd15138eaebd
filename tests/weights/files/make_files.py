"""Writes the files beside it with torch 2.13.0: `python make_files.py` where torch is installed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def kinds() -> OrderedDict:
    base, five = torch.arange(12.0), torch.arange(5)
    return OrderedDict(
        transposed=torch.arange(6.0).reshape(2, 3).t(),
        late=base[4:10].reshape(2, 3),
        steps=base[1::3],
        whole=base,
        expanded=torch.tensor([5.0]).expand(2, 3),
        parameter=torch.nn.Parameter(torch.arange(4.0)),
        half=five.half(),
        bfloat16=five.bfloat16(),
        double=five.double(),
        long=five - 2,
        int=five.int() - 2,
        short=five.short() - 2,
        char=five.to(torch.int8) - 2,
        byte=five.to(torch.uint8),
        bool=five % 2 == 0,
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        unsigned=five.to(torch.uint16),
    )


def model() -> OrderedDict:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.BatchNorm2d(3))
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(6.0).reshape(3, 2, 1, 1))
        network[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network[1].bias.copy_(torch.tensor([-1.0, -2.0, -3.0]))
        network[1].running_mean.copy_(torch.tensor([4.0, 5.0, 6.0]))
        network[1].num_batches_tracked.fill_(7)
    return network.state_dict()


def checkpoint() -> dict:
    weight = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    with torch.no_grad():
        weight.copy_(torch.arange(3.0))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    return {
        "epoch": 3,
        "best": 0.5,
        "name": "run",
        "shape": torch.Size([1, 2]),
        "tags": {"a"},
        "state_dict": {"module.weight": weight, "module.count": torch.tensor(2)},
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }


if __name__ == "__main__":
    for make in (kinds, model, checkpoint):
        for name, zipped in (("zip", True), ("stream", False)):
            path = FOLDER / f"{make.__name__}_{name}.pth"
            torch.save(make(), path, _use_new_zipfile_serialization=zipped)
    torch.jit.script(torch.nn.Linear(2, 1)).save(FOLDER / "torchscript.pt")
