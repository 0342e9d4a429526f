"""Saliency while a model trains: logged to a TensorWatch stream, drawn as it arrives.

```python
watcher = LoopbackWatcher(filename="run.log")               # or port=0: TensorWatch's ZMQ transport, on loopback
log = SaliencyLogger(model, images, watcher.create_stream("saliency"), every=50)
for batch in loader:
    train(batch)
    log()
```

and, in the same notebook before the loop or in another process, ``SaliencyView(stream)`` as the last line of a cell.

TensorWatch's own ``Watcher()`` listens on every network interface and unpickles and evaluates what arrives there:
whoever reaches the port runs code in the training process. :class:`LoopbackWatcher` binds 127.0.0.1 only, and nothing
at all unless a port is asked for.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np
import tensorwatch
from tensorwatch.stream import Stream
from tensorwatch.zmq_wrapper import ZmqWrapper
from torch import Tensor, nn

from . import images as pictures
from .display.contact_sheet import contact_sheet
from .errors import InputError
from .explainers import registry
from .model.answer import class_names as names_of
from .model.card import read_card
from .question import Question

LOOPBACK = "127.0.0.1"
STREAM = "saliency"
_views: set[SaliencyView] = set()  # streams hold their subscribers weakly; a view on the screen must live on


@contextlib.contextmanager
def _bound_to_loopback() -> Iterator[None]:
    """Let publications made inside bind to loopback: their host is a default that no caller can pass."""
    make = ZmqWrapper.Publication.__init__
    before = make.__defaults__
    make.__defaults__ = (LOOPBACK, *before[1:])
    try:
        yield
    finally:
        make.__defaults__ = before


class LoopbackWatcher(tensorwatch.Watcher):
    """A TensorWatch ``Watcher`` that other machines cannot reach.

    Parameters
    ----------
    filename : str, optional
        Also write streams to this file; a viewer that comes later reads all of it.
    port : int, optional
        TensorWatch's port number (added to 40859 and 41459), on 127.0.0.1. Default None: nothing listens.
    srv_name : str, optional
        As TensorWatch's.
    """

    def __init__(self, filename: str | None = None, port: int | None = None, srv_name: str | None = None) -> None:
        super().__init__(filename=filename, port=port, srv_name=srv_name)

    def _open_devices(self) -> None:
        with _bound_to_loopback():
            super()._open_devices()

    def create_stream(self, *args: Any, **kwargs: Any) -> Stream:
        """As TensorWatch's; any device it opens is on loopback too."""
        with _bound_to_loopback():
            return super().create_stream(*args, **kwargs)

    def close(self) -> None:
        """Close sockets and files; safe to call twice."""
        if self.closed:
            return
        if self._th is not None:
            self._th.join()  # its greeting, two seconds after opening, must not meet a closed socket
        for stream in self._stream_factory._streams.values():
            _close_device(stream)
        self._stream_factory._streams.clear()
        self._zmq_stream_pub = None
        super().close()


def _close_device(stream: Stream) -> None:
    file = getattr(stream, "_file", None)
    if file is None:
        stream.close()
    else:
        file.close()  # FileStream.close() of TensorWatch 0.9.1 raises AttributeError after closing


def open_stream(name: str = STREAM, filename: str | None = None, port: int | None = None) -> Stream:
    """A stream that another process writes, for :class:`SaliencyView`.

    Parameters
    ----------
    name : str
        The stream's name.
    filename, port
        Where the other process's :class:`LoopbackWatcher` writes: exactly one of them.

    Raises
    ------
    InputError
        If not exactly one of the two is given.
    """
    if (filename is None) == (port is None):
        raise InputError("open_stream needs either filename= (what the watcher writes) or port= (where it sends).")
    device = f"file:{filename}" if port is None else f"tcp:{port}"
    client = tensorwatch.WatcherClient(port=port)
    stream = client.open_stream(name=name, devices=[device])
    stream.held_refs.add(_Holder(client))
    return stream


class _Holder(Stream):
    """Keeps a client alive as long as the stream that was opened through it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


class SaliencyLogger:
    """Logs the saliency of fixed images while a model trains.

    Call it once a training step: every `every`-th call explains the images and writes to the stream what
    TensorWatch's image visualizer and :class:`SaliencyView` both draw. Training goes on exactly as without it: mode,
    gradients and random numbers are given back, and an explanation or a viewer that fails is reported once, by a
    warning, and does not raise.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    images : sequence
        The images, in any form that ``get_saliency`` takes.
    stream : tensorwatch.Stream
        From ``watcher.create_stream("saliency")``, or a bare ``tensorwatch.Stream()`` for a view in this process.
    labels : sequence of int, optional
        Classes to explain; default: whatever the model favours at the time.
    method : str
        One of :func:`saliency_lrp.list_methods`.
    every : int
        Explain at the first call and at every `every`-th after it.
    transform : callable, optional
        From a PIL image to the model's input; default: the model's own preprocessing.
    class_names : sequence of str
        Names for the titles.
    **options
        For the method.

    Raises
    ------
    InputError
        If there are no images, `every` is not positive, or labels and images differ in number.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[Any],
        stream: Stream,
        labels: Sequence[int] | None = None,
        method: str = "lrp",
        every: int = 100,
        transform: Callable[[Any], Tensor] | None = None,
        class_names: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if not len(images) or every < 1:
            raise InputError(
                f"logging needs at least one image and every >= 1, not {len(images)} images, every={every}."
            )
        if labels is not None and len(labels) != len(images):
            raise InputError(f"{len(labels)} labels were given for {len(images)} images.")
        self.model, self.stream, self.labels, self.every = model, stream, labels, every
        self.explainer = registry.get(method, model, **options)
        self.class_names = class_names or names_of(model)
        self.calls = 0
        self._failed: set[str] = set()
        raws = [pictures.load_image(image) for image in images]
        built = [pictures.build_input(model, raw, transform) for raw in raws]
        self._pictures = [np.asarray(raw.picture()) for raw in raws]
        self._inputs = [tensor for tensor, _, _ in built]
        self._geometries = [geometry for _, geometry, _ in built]

    def __call__(self, step: int | None = None, force: bool = False) -> bool:
        """Count one training step and log if it is time to.

        Parameters
        ----------
        step : int, optional
            Number for the title; default: how often it was called.
        force : bool
            Log whatever the count, for instance after the last step.

        Returns
        -------
        bool
            Whether something was logged.
        """
        due = force or self.calls % self.every == 0
        number = self.calls if step is None else step
        self.calls += 1
        return due and self._guarded(lambda: self.stream.write(self.explain(number)))

    def _guarded(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # training matters more than looking at it
            text = f"{type(error).__name__}: {error}"
            if text not in self._failed:
                self._failed.add(text)
                warnings.warn(f"saliency was not logged ({text}); training goes on.", RuntimeWarning, stacklevel=3)
            return False
        return True

    def explain(self, step: int) -> list[tensorwatch.ImageData]:
        """The images and their overlays as TensorWatch sends them: RGB, (3, H, W) float32 in [0, 1]."""
        items = []
        for index, (picture, tensor, geometry) in enumerate(
            zip(self._pictures, self._inputs, self._geometries, strict=True)
        ):
            label = None if self.labels is None else self.labels[index]
            overlay, title = self._overlay(label, picture, tensor, geometry)
            items += [_image_data(picture, f"step {step}"), _image_data(overlay, title)]
        return items

    def _overlay(self, label: Any, picture: np.ndarray, tensor: Tensor, geometry: Any) -> tuple[np.ndarray, str]:
        from .display.colors import blend

        x = read_card(self.explainer.model).fitting(tensor)
        question = Question(self.explainer.model, x, label, self.class_names)
        relevance = self.explainer.explain(x, question.label)[0].sum(0).float().cpu().numpy()
        question.hear(self.explainer)
        question.settle()
        answer = question.answer
        assert answer is not None, "a settled question has an answer"
        return blend(picture, geometry.place(relevance)), f"{answer.name()} {answer.share():.2f}"


def _image_data(pixels: np.ndarray, title: str) -> tensorwatch.ImageData:
    return tensorwatch.ImageData(pixels.transpose(2, 0, 1).astype(np.float32) / 255, title=title)


class SaliencyView(Stream):
    """Draws what a :class:`SaliencyLogger` writes as it arrives; the last line of a cell shows it.

    TensorWatch's own image plot shows nothing in JupyterLab's inline mode, and stops during a loop in the cell; this
    draws by itself. With the slider one looks back at earlier steps.

    Parameters
    ----------
    stream : tensorwatch.Stream
        The logger's stream, or one of another process from :func:`open_stream`.
    columns : int
        Pictures in a row.
    history : int
        Steps kept to look back at.
    """

    def __init__(self, stream: Stream, columns: int = 4, history: int = 200) -> None:
        super().__init__(stream_name="saliency view")
        self.columns, self.history = columns, history
        self.frames: list[bytes] = []
        self.image = ipywidgets.Image(value=_blank(), format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.slider = ipywidgets.IntSlider(0, 0, 0, description="Shown", continuous_update=True, disabled=True)
        self.status = ipywidgets.Label("waiting for the first step")
        self.box = ipywidgets.VBox([self.image, ipywidgets.HBox([self.slider, self.status])])
        self.slider.observe(lambda change: self._show(change["new"]), "value")
        self.held_refs.add(stream)
        self.subscribe(stream)
        _views.add(self)

    def write(self, val: Any, from_stream: Stream | None = None) -> None:
        """Draw one step; called by the stream."""
        item = self.to_stream_item(val)
        if isinstance(item.value, (list, tuple)) and item.value:
            self._draw(item.value)
        super().write(item)

    def _draw(self, items: Sequence[Any]) -> None:
        tiles = [(_pixels(image), item.title or "", "") for item in items for image in item.images]
        at_end = self.slider.value >= len(self.frames) - 1
        self.frames.append(contact_sheet(tiles, columns=self.columns, width=160))
        del self.frames[: -self.history]
        self.slider.max = len(self.frames) - 1
        self.slider.disabled = len(self.frames) < 2
        if at_end:  # someone who looks back is left in peace
            self.slider.value = len(self.frames) - 1
            self._show(len(self.frames) - 1)
        else:
            self.status.value = f"{self.slider.value + 1} of {len(self.frames)}"

    def _show(self, place: int) -> None:
        if place < len(self.frames):
            self.image.value = self.frames[place]
            self.status.value = f"{place + 1} of {len(self.frames)}"

    def close(self) -> None:
        """Stop drawing."""
        _views.discard(self)
        super().close()

    def __repr__(self) -> str:
        return f"SaliencyView({len(self.frames)} steps)"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        import base64

        bundle = self.box._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        png = base64.b64encode(self.image.value).decode("ascii")
        return {**data, "image/png": png, "text/plain": repr(self)}, metadata


def _pixels(image: Any) -> np.ndarray:
    """TensorWatch's (3, H, W) floats as (H, W, 3) bytes."""
    return np.rint(np.clip(np.asarray(image).transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)


def _blank() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (160, 16), "white").save(buffer, "PNG")
    return buffer.getvalue()
