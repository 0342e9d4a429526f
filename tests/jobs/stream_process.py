"""The two processes of the live stream test: ``python stream_process.py train PORT`` and ``... view PORT``.

Training goes on until its standard input ends.
"""

from __future__ import annotations

import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def train(port: int) -> None:
    import numpy as np
    import torch
    from torch import nn

    from saliency_lrp.stream import LoopbackWatcher, SaliencyLogger

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pictures = [np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8) for i in range(2)]
    watcher = LoopbackWatcher(port=port)
    log = SaliencyLogger(model, pictures, watcher.create_stream("saliency"), method="grad_x_input", every=1)
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    steps = 0
    while not told.is_set():
        began = time.monotonic()
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.randint(4, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged = log(steps)
        say(step=steps, logged=logged, took=time.monotonic() - began)
        steps += 1
        time.sleep(0.05)
    watcher.close()
    say(finished=True, steps=steps, training=model.training)


def view(port: int) -> None:
    from saliency_lrp.stream import SaliencyView, open_stream

    shown = SaliencyView(open_stream(port=port))
    say(ready=True)
    seen = 0
    while True:
        if len(shown.frames) > seen:
            seen = len(shown.frames)
            say(frames=seen, size=len(shown.image.value))
        time.sleep(0.02)


if __name__ == "__main__":
    {"train": train, "view": view}[sys.argv[1]](int(sys.argv[2]))
