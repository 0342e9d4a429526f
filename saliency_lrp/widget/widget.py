"""The interactive overlay: saliency methods side by side over the picture, blended in the browser.

The kernel sends the picture, the signed maps and the colour tables once. Opacity, colours, sign, clipping, zoom and
the value under the mouse are then the browser's business and cost no message. What has to be computed (another class,
method, composite, layer or channel) is computed in worker threads and appears as it finishes.
"""

from __future__ import annotations

import base64
import contextlib
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..display.colors import DIVERGING, UNSIGNED_COLORS, blend, color_limit, color_table
from ..display.contact_sheet import contact_sheet
from ..display.looks import LOOKS, Choice, Scale
from ..display.volume import strongest
from ..errors import InputError, unknown_name
from ..explainers.progress import duration
from ..explainers.registry import LRP_PREFIX
from . import marks, page
from .source import Channels, Checked, Map, MapSource
from .still import Still, small_png, somebody_watches, still_html
from .worker import Cancelled, Progress, Worker

TRACED = ("lrp", "layer", "concept")  # panels that follow the composite selector, and reuse the one forward
#: states of panels that something is still to come for
UNFINISHED = ("waiting", "running")
#: seconds that showing waits for maps that cost one backward pass
TRACED_PATIENCE = 30.0
#: what a front end may ask for: it is computed
ASKED = ("target", "selected", "composite", "layer", "channel")
#: what a page of its own has no use for
NOT_SAVED = ("layout", "tabbable", "tooltip", "key")


#: more than any layer has
MOST_CHANNELS = 2**24


def _map_trait(panel: str) -> str:
    return f"map_{panel}"


class Spelled(traitlets.Enum):
    """One of some names, in any spelling that is understood."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(list(choice.names or ()), choice.default)
        self.choice = choice

    def validate(self, obj: Any, value: Any) -> Any:
        return super().validate(obj, self.choice.as_kept(value))


def _look_trait(look: Scale | Choice) -> traitlets.TraitType[Any, Any]:
    if isinstance(look, Scale):
        return traitlets.Float(look.default, min=look.low, max=look.high)
    return traitlets.Unicode(look.default) if look.names is None else Spelled(look)


#: the traits of how maps are looked at
Looked = type(
    "Looked", (traitlets.HasTraits,), {name: _look_trait(look).tag(sync=True) for name, look in LOOKS.items()}
)


class SaliencyWidget(Looked, anywidget.AnyWidget):  # type: ignore[valid-type,misc]  # made of a table
    """Saliency maps side by side over one picture, live in a notebook and a picture without a kernel.

    Made by :func:`compare_saliency`. Everything shown is a traitlet: ``widget.target = 3`` does what the class
    selector does, as do ``composite``, ``selected``, ``layer``, ``channel``, ``opacity``, ``cmap``, ``sign``,
    ``percentile`` and ``backdrop``.
    """

    _esm = page.SCRIPT
    _css = page.STYLE

    page = traitlets.Unicode(help="the page that Save HTML fills").tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    key = traitlets.Unicode(help="by which the front end finds whether a kernel is behind the view").tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    depth = traitlets.Int(1, help="slices of a volume; 1: a picture").tag(sync=True)
    slice = traitlets.Int(0, min=0, help="slice of the volume that is shown").tag(sync=True)
    image = traitlets.Bytes().tag(sync=True)
    frame: traitlets.List[Any] = traitlets.List(
        help="top, left, bottom, right of what the model saw, where that is not all"
    ).tag(sync=True)
    truth = traitlets.Unicode(help="outline of the object, as an SVG path").tag(sync=True)
    luts = traitlets.Dict().tag(sync=True)
    sequential = traitlets.Bytes(b"", help="colours of maps without a sign").tag(sync=True)
    code: traitlets.List[Any] = traitlets.List(help="the call that made this view, as far as it is fixed").tag(
        sync=True
    )
    looks = traitlets.Dict(help="the controls of how maps are looked at").tag(sync=True)
    saved: traitlets.List[Any] = traitlets.List(help="the traits that a page of its own keeps").tag(sync=True)

    panels: traitlets.List[Any] = traitlets.List().tag(sync=True)
    classes: traitlets.List[Any] = traitlets.List().tag(sync=True)
    class_count = traitlets.Int().tag(sync=True)
    top: traitlets.List[Any] = traitlets.List().tag(sync=True)
    can_check = traitlets.Bool(False, help="whether maps can be checked").tag(sync=True)
    methods: traitlets.List[Any] = traitlets.List().tag(sync=True)
    composites: traitlets.List[Any] = traitlets.List().tag(sync=True)
    composite_groups: traitlets.List[Any] = traitlets.List(
        help="[group, [[composite, line], ...]], the first to begin with"
    ).tag(sync=True)
    layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    channels: traitlets.List[Any] = traitlets.List().tag(sync=True)
    channel_maps = traitlets.Bytes().tag(sync=True)
    channel_size: traitlets.List[Any] = traitlets.List().tag(sync=True)

    target = traitlets.Int(-1, help="class explained; -1: the model has no classes to choose from").tag(sync=True)
    selected: traitlets.List[Any] = traitlets.List().tag(sync=True)
    composite = traitlets.Unicode().tag(sync=True)
    own_composite = traitlets.Unicode("", help="composite that was given as an object, which no name reproduces").tag(
        sync=True
    )
    layer = traitlets.Unicode("", help="layer shown beside the methods; empty: none").tag(sync=True)
    channel = traitlets.Int(-1, help="channel of the layer whose concept map is shown; -1: none").tag(sync=True)

    def __init__(
        self,
        source: MapSource,
        *,
        selected: Sequence[str],
        composite: str,
        target: int = -1,
        layer: str = "",
        channel: int = -1,
        top_k: int = 5,
        code: Sequence[str] = ("model", "image"),
        patience: float | None = 2.0,
        own_composite: str = "",
        **look: Any,
    ) -> None:
        self._source = source
        self._patience = patience
        self._maps: dict[str, np.ndarray] = {}
        self._unsigned: set[str] = set()
        self._started: dict[str, float] = {}
        self._sliced = False  # whether the slice was chosen by a map
        self._progresses: dict[str, Progress] = {}
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._workers = {True: Worker("saliency traced maps"), False: Worker("saliency methods")}
        self._check(selected=selected, composite=composite, layer=layer)
        color = look.get("cmap", LOOKS["cmap"].default)
        names = list(dict.fromkeys([*DIVERGING, color]))
        self._volume = source.picture if source.picture.ndim == 4 else source.picture[None]
        depth, height, width = self._volume.shape[:3]
        # before the widget opens: one message then carries one map
        self.add_traits(
            **{
                _map_trait(panel): traitlets.Bytes(b"").tag(sync=True)
                for panel in dict.fromkeys([*source.methods, *TRACED])
            }
        )
        super().__init__(
            page=page.template(),
            width=width,
            height=height,
            depth=depth,
            slice=depth // 2,
            frame=list(getattr(source, "frame", ())),
            truth=getattr(source, "truth", ""),
            composite_groups=list(getattr(source, "composite_groups", ())),
            image=np.ascontiguousarray(source.picture).tobytes(),
            luts={name: color_table(name).tobytes() for name in names},
            sequential=color_table(UNSIGNED_COLORS).tobytes(),
            code=list(code),
            looks={name: control.for_page() for name, control in LOOKS.items()},
            classes=list(source.classes),
            class_count=len(source.probabilities),
            top=self._top(target, top_k),
            methods=list(source.methods),
            can_check=hasattr(source, "check"),
            composites=list(source.composites),
            layers=list(source.layers),
            target=target,
            selected=list(dict.fromkeys(selected)),
            composite=composite,
            own_composite=own_composite,
            layer=layer,
            channel=channel,
            **look,
        )
        self.key = self.model_id or ""
        self.saved = [name for name in self.keys if not name.startswith(("_", "map_")) and name not in NOT_SAVED]
        self._still = Still(self._still_bundle)
        self._finishes_cells = False
        self._shown: Any = None
        self.observe(self._picture_changed, ["panels", "channels", "slice", *LOOKS])
        self.observe(self._retarget, "target")
        self.observe(self._recompose, "composite")
        self.observe(self._reselect, "selected")
        self.observe(self._relayer, "layer")
        self.observe(self._rechannel, "channel")
        self.on_msg(self._message)
        self._compute(self._wanted())

    # ---- what is asked -------------------------------------------------------------------------------------------

    def _check(self, *, selected: Iterable[str] = (), composite: str | None = None, layer: str = "") -> None:
        for name in selected:
            if name not in self._source.methods:
                raise unknown_name("method", name, self._source.methods)
        if composite is not None and self._source.composites and composite not in self._source.composites:
            raise unknown_name("composite", composite, self._source.composites)
        if layer and layer not in self._source.layers:
            raise unknown_name("layer", layer, self._source.layers)

    @traitlets.validate(*ASKED, *LOOKS, "slice")
    def _valid(self, proposal: Mapping) -> Any:
        return self._checked(proposal["trait"].name, proposal["value"])

    def _checked(self, name: str, value: Any) -> Any:
        """The value of a trait that anybody may set, or an error that says what is known."""
        if name == "target":
            count = len(self._source.probabilities)
            if not -1 <= value < max(count, 1):
                raise InputError(f"label {value} is not a class of this model; it has {count}: 0 to {count - 1}.")
        elif name == "selected":
            self._check(selected=value)
            return list(dict.fromkeys(value))
        elif name in ("composite", "layer"):
            self._check(**{name: value})
        elif name == "channel" and not -1 <= value < MOST_CHANNELS:
            raise InputError(f"channel {value} should be a number of a channel, or -1 for none.")
        elif name == "slice" and not 0 <= value < len(self._volume):
            raise InputError(
                f"slice {value} is none of this picture's {len(self._volume)}: 0 to {len(self._volume) - 1}."
            )
        elif isinstance(LOOKS.get(name), Scale) and not math.isfinite(value):
            raise InputError(f"{name} should be a finite number, not {value}.")
        elif name == "cmap" and value not in self.luts:
            self.luts = {**self.luts, value: color_table(value).tobytes()}
        return value

    def set_state(self, sync_data: Mapping[str, Any]) -> None:
        """Take what a front end sends: questions and looks, each checked. Whatever else it sends is refused.

        A front end holds code from whoever wrote the notebook, and what it sends ends up in saved pages.
        """
        taken = {}
        for name, value in sync_data.items():
            if name in (*ASKED, *LOOKS, "slice"):
                with contextlib.suppress(ValueError, TypeError, OverflowError, traitlets.TraitError):
                    taken[name] = self._checked(name, self.traits()[name].validate(self, value))
        super().set_state(taken)
        refused = [name for name in sync_data if name not in taken and name in self.keys]
        if refused:
            self.send_state(refused)  # the front end sees what holds

    def _top(self, target: int, top_k: int) -> list[dict]:
        probabilities, classes = self._source.probabilities, self._source.classes
        best = [int(index) for index in np.argsort(-probabilities, kind="stable")[:top_k]]
        shown = best if target in best or target < 0 else [*best, target]
        return [
            {
                "index": index,
                "name": classes[index] if index < len(classes) else f"class {index}",
                "probability": float(probabilities[index]),
            }
            for index in shown
        ]

    def _wanted(self) -> list[str]:
        extra = ["layer"] * bool(self.layer) + ["concept"] * bool(self.layer and self.channel >= 0)
        return [*self.selected, *extra]

    def _retarget(self, change: Mapping) -> None:
        self._compute(self._wanted())

    def _recompose(self, change: Mapping) -> None:
        self._compute([panel for panel in self._wanted() if panel in TRACED])

    def _reselect(self, change: Mapping) -> None:
        self._compute([name for name in change["new"] if name not in change["old"]])

    def _relayer(self, change: Mapping) -> None:
        if self.channel >= 0:
            self.channel = -1
        if not self.layer:
            self.channels = []
        self._compute([panel for panel in self._wanted() if panel == "layer"])

    def _rechannel(self, change: Mapping) -> None:
        self._compute([panel for panel in self._wanted() if panel == "concept"])

    def _message(self, widget: Any, content: Any, buffers: Any) -> None:
        actions = {"cancel": self.cancel, "check": self.check}
        if not isinstance(content, Mapping) or not all(isinstance(content.get(key), str) for key in ("type", "id")):
            return
        if content["type"] in actions and content["id"] in self._progresses:
            actions[content["type"]](content["id"])

    def _picture_changed(self, change: Mapping) -> None:
        """Let the still follow what is seen: finished maps and looks, but no progress."""
        finished = [(info["id"], info["title"], info["state"]) for info in self.panels]
        shown = [entry for entry in finished if entry[-1] not in UNFINISHED], self._look(), self.slice
        if shown != self._shown:
            self._shown = shown
            self._still.outdated()

    # ---- computing -----------------------------------------------------------------------------------------------

    def _compute(self, panels: Sequence[str]) -> None:
        wanted = self._wanted()
        with self._lock:
            for gone in [panel for panel in self._progresses if panel not in wanted]:
                self._progresses.pop(gone).cancel()
                self._forget(gone)
            self._order(wanted)
            for panel in panels:
                self._submit(panel)

    def _forget(self, panel: str) -> None:
        self._maps.pop(panel, None)
        setattr(self, _map_trait(panel), b"")

    def _order(self, wanted: Sequence[str]) -> None:
        known = {info["id"]: info for info in self.panels}
        self.panels = [
            known.get(panel) or {"id": panel, "title": self._title(panel), "state": "waiting"} for panel in wanted
        ]

    def _title(self, panel: str) -> str:
        titles = {
            "lrp": lambda: f"lrp · {self.composite}",
            "layer": lambda: f"layer {self.layer}",
            "concept": lambda: f"channel {self.channel} of {self.layer}",
        }
        return titles.get(panel, lambda: panel)()

    def _submit(self, panel: str) -> None:
        if panel in self._progresses:
            self._progresses[panel].cancel()
        watch = Progress(lambda done, total: self._progress(panel, watch, done, total))
        self._progresses[panel] = watch
        title = self._title(panel)
        ask = (self.target if self.target >= 0 else None, self.composite, self.layer, self.channel)
        self._describe(panel, {"title": title, "state": "waiting"})
        self._workers[self._is_traced(panel)].submit(lambda: self._job(panel, watch, ask), watch)

    @staticmethod
    def _is_traced(panel: str) -> bool:
        return panel in TRACED or panel.startswith(LRP_PREFIX)

    def _job(self, panel: str, watch: Progress, ask: tuple) -> None:
        try:
            watch.check()
            self._settle(panel, watch, state="running")
            start = self._started[panel] = time.perf_counter()
            found, channels = self._map(panel, watch, *ask)
            seconds = time.perf_counter() - start
        except Cancelled:
            self._settle(panel, watch, state="cancelled")
        except Exception as error:  # noqa: BLE001  # shown in the panel: the other methods go on
            self._settle(panel, watch, state="failed", warnings=[f"{type(error).__name__}: {error}"])
        else:
            self._publish(panel, watch, found, channels, seconds)

    def _map(
        self, panel: str, watch: Progress, target: int | None, composite: str, layer: str, channel: int
    ) -> tuple[Map, Channels | None]:
        if panel == "layer":
            return self._source.layer(layer, target, composite)
        if panel == "concept":
            return self._source.concept(layer, channel, target, composite), None
        if self._is_traced(panel):
            return self._source.lrp(target, composite if panel == "lrp" else panel.removeprefix(LRP_PREFIX)), None
        return self._source.method(panel, target, watch), None

    def check(self, panel: str = "lrp") -> None:
        """Measure in the background whether the map of a panel (a method's name) can be trusted, and show it there.

        Raises
        ------
        InputError
            If there is no such map, or none that can be checked.
        """
        if not self.can_check or panel in ("layer", "concept") or panel not in self._maps:
            raise InputError(
                f"there is no finished map {panel!r} to check: there are {', '.join(self._maps) or 'none'}."
            )
        watch, ask = self._progresses[panel], (self.target if self.target >= 0 else None, self.composite)
        self._settle_check(panel, watch, {"state": "running"})
        self._workers[False].submit(lambda: self._check_job(panel, watch, ask), Progress())

    def _check_job(self, panel: str, watch: Progress, ask: tuple) -> None:
        try:
            source: Any = self._source  # has it: can_check says so
            found: Checked = source.check(panel, *ask, Progress())
            pictures = [{"title": name, "src": self._small(values, found.signed)} for name, values in found.maps]
            news = {
                "state": "done",
                "verdict": found.verdict,
                "holds": found.holds,
                "findings": found.findings,
                "left_out": found.left_out,
                "pictures": pictures,
            }
        except Exception as error:  # noqa: BLE001  # shown in the panel
            news = {"state": "failed", "verdict": f"{type(error).__name__}: {error}"}
        self._settle_check(panel, watch, news)

    def _settle_check(self, panel: str, watch: Progress, news: Mapping[str, Any]) -> None:
        """Show what a check found, unless the map has become another meanwhile."""
        with self._lock:
            if self._progresses.get(panel) is watch and panel in self._maps:
                self.panels = [
                    {**info, "check": dict(news)} if info["id"] == panel and info["state"] == "done" else info
                    for info in self.panels
                ]

    def _small(self, values: np.ndarray, signed: bool) -> str:
        """A map over the picture, small, as a data address."""
        limit = color_limit(values, self._look()["percentile"])
        pixels = blend(self._volume[self.slice], self._slice_of(values), signed=signed, limit=limit, **self._look())
        return page.thumbnail(pixels)

    def _publish(self, panel: str, watch: Progress, found: Map, channels: Channels | None, seconds: float) -> None:
        values = np.asarray(found.values, np.float32)
        warnings = list(found.warnings)
        if not np.isfinite(values).all():
            warnings.append("the map has NaN or infinite values: they are shown as 0")
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        with self._lock:
            if self._progresses.get(panel) is not watch:
                return
            if values.ndim == 3 and not self._maps and not self._sliced:
                self._sliced, self.slice = True, strongest(values)[0]
            self._maps[panel] = values
            (self._unsigned.discard if found.signed else self._unsigned.add)(panel)
            setattr(self, _map_trait(panel), np.ascontiguousarray(values, "<f4").tobytes())
            if channels is not None:
                self._show_channels(channels)
            account = dict(found.account) if found.account else None
            news = {"seconds": seconds, "warnings": warnings, "account": account, "signed": found.signed}
            self._settle(panel, watch, state="done", **news)

    def _show_channels(self, channels: Channels) -> None:
        self.channels = []  # the browser redraws once everything below is there
        self.channel_size = list(channels.maps.shape[1:])
        self.channel_maps = np.ascontiguousarray(channels.maps, "<f4").tobytes()
        self.channels = channels.entries

    def _progress(self, panel: str, watch: Progress, done: int, total: int | None) -> None:
        seconds = time.perf_counter() - self._started.get(panel, time.perf_counter())
        left = duration(seconds * (total - done) / done) if done and total else ""
        self._settle(panel, watch, state="running", done=done, total=total, left=left)

    def _settle(self, panel: str, watch: Progress, **news: Any) -> None:
        with self._lock:
            if self._progresses.get(panel) is watch:
                self._describe(panel, news)
                self._settled.notify_all()

    def _describe(self, panel: str, news: Mapping[str, Any]) -> None:
        self.panels = [
            {"id": panel, "title": info["title"], **news} if info["id"] == panel else info for info in self.panels
        ]

    # ---- for the caller ------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, which: Callable[[Mapping], bool] = lambda info: True) -> bool:
        """Block until every panel is finished, failed or cancelled.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait at most; None waits for all.
        which : callable
            Which panels to wait for, by their entry in ``panels``.

        Returns
        -------
        bool
            Whether nothing is running any more.
        """
        with self._settled:
            return self._settled.wait_for(
                lambda: all(info["state"] not in UNFINISHED for info in self.panels if which(info)), timeout
            )

    def cancel(self, panel: str | None = None) -> None:
        """Stop computing one panel (by its method's name), or all of them."""
        with self._lock:
            for name, watch in self._progresses.items():
                if panel in (None, name):
                    watch.cancel()
                    if any(info["id"] == name and info["state"] in UNFINISHED for info in self.panels):
                        self._describe(name, {"state": "cancelled"})
            self._settled.notify_all()

    def maps(self) -> dict[str, np.ndarray]:
        """The finished maps by panel: (height, width) float32, signed."""
        with self._lock:
            return {info["id"]: self._maps[info["id"]].copy() for info in self.panels if info["id"] in self._maps}

    def close(self) -> None:
        """Cancel what is running and close the widget."""
        with contextlib.suppress(AttributeError):  # a half-made widget has nothing to cancel
            self.cancel()
            self._still.close()
        super().close()

    # ---- without a kernel ----------------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """The composite, by its older name."""
        return self.composite

    @rule.setter
    def rule(self, name: str) -> None:
        self.composite = name

    def _look(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LOOKS}

    def to_png(self, columns: int = 3, width: int = 224) -> bytes:
        """The panels as one PNG picture, blended as the browser does.

        Parameters
        ----------
        columns : int
            Panels beside one another.
        width : int
            Least width of a panel in pixels; smaller pictures are enlarged.
        """
        with self._lock:
            infos, maps = list(self.panels), dict(self._maps)
        picture = self._volume[self.slice]
        tiles = [(self._marked(picture), "picture", "")]
        for info in infos:
            values = maps.get(info["id"])
            signed = info["id"] not in self._unsigned
            shown = picture
            if values is not None:
                limit = color_limit(values, self._look()["percentile"])
                shown = blend(picture, self._slice_of(values), signed=signed, limit=limit, **self._look())
            tiles.append((self._marked(shown), info["title"], self._caption(info)))
        return contact_sheet(tiles, columns=columns, width=width)

    def _slice_of(self, values: np.ndarray) -> np.ndarray:
        return values[self.slice] if values.ndim == 3 else values

    def _marked(self, pixels: np.ndarray) -> np.ndarray:
        """With the frame of what the model saw, and the outline of the object."""
        return marks.drawn(pixels, self.frame, getattr(self._source, "truth_mask", None))

    def _caption(self, info: Mapping[str, Any]) -> str:
        if info["state"] != "done":
            return info["state"]
        return (info.get("account") or {}).get("summary", "")

    def _state_for_page(self) -> dict[str, Any]:
        with self._lock:
            state = {name: getattr(self, name) for name in self.saved}
            maps, channel_maps = dict(self._maps), np.frombuffer(self.channel_maps, "<f4")
        state["panels"] = [
            {**info, "state": "not computed"} if info["state"] in UNFINISHED else info for info in state["panels"]
        ]
        state.update({_map_trait(panel): page.packed_map(values) for panel, values in maps.items()})
        slices, height, width, _ = self._volume.shape  # under one another
        state["image"] = page.packed_picture(self._volume.reshape(slices * height, width, 3))
        return {**state, "channel_maps": page.packed_map(channel_maps), "live": False}

    def to_html(self) -> str:
        """A page of its own: the same view, interactive, with no kernel and no network.

        Maps that are not finished are said not to be computed.

        Returns
        -------
        str
            HTML that holds picture, maps, code and style; some 100 kB for each map of a photograph.
        """
        return page.page(self._state_for_page())

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write the view to a ``.html`` (interactive) or ``.png`` file.

        Raises
        ------
        InputError
            If the file name ends otherwise.
        """
        target = pathlib.Path(path)
        if target.suffix == ".html":
            target.write_text(self.to_html(), "utf-8")
        elif target.suffix == ".png":
            target.write_bytes(self.to_png())
        else:
            raise InputError(f"cannot save a view as {target.name!r}: give a name that ends in .html or .png.")
        return target

    def _still_bundle(self) -> dict[str, Any]:
        """What a saved notebook keeps: the maps as they are now."""
        png = small_png(self.to_png())
        notes = [f"{info['title']}: {text}" for info in self.panels for text in info.get("warnings", [])]
        html = still_html(png, self._still_caption(), notes, self.to_html())
        return {"image/png": base64.b64encode(png).decode("ascii"), "text/html": html, "text/plain": repr(self)}

    def _still_caption(self) -> str:
        """Class, composite and how much of the score the map accounts for, as far as they are known."""
        parts = []
        if self.target >= 0:
            known = {entry["index"]: entry for entry in self._top(self.target, 1)}[self.target]
            parts.append(f"{known['name']} ({known['probability']:.1%})")
        parts.append(f"composite {self.composite}")
        lrp: Mapping[str, Any] = next((info for info in self.panels if info["id"] == "lrp"), {})
        parts += [summary for summary in [(lrp.get("account") or {}).get("summary")] if summary]
        return " · ".join(parts) + ". Run the cell to ask for other classes, composites and layers."

    def __repr__(self) -> str:
        label = f", label={self.target}" if self.target >= 0 else ""
        return (
            f"SaliencyWidget(methods={tuple(self.selected)}{label}, composite={self.composite!r}, "
            f"size={self.width}x{self.height})"
        )

    def _settle_for_showing(self) -> bool:
        """Wait as long as showing should; whether somebody is there who sees later changes."""
        attended = somebody_watches()
        self.wait(self._patience if attended else None)
        if attended and self._patience is not None:
            self.wait(TRACED_PATIENCE, lambda info: self._is_traced(info["id"]))
        return attended

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        self._settle_for_showing()
        data, metadata = self._view(**kwargs)
        return {**data, **self._still_bundle()}, metadata

    def _view(self, **kwargs: Any) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle if isinstance(bundle, tuple) else (bundle or {}, {})

    def _ipython_display_(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        attended = self._settle_for_showing()
        self._still.show()
        data, metadata = self._view()
        view = {kind: form for kind, form in data.items() if kind.startswith("application/")}
        display({**view, "text/plain": ""}, metadata=metadata, raw=True)
        shell = get_ipython()
        if not attended and shell is not None and not self._finishes_cells:
            self._finishes_cells = True
            shell.events.register("post_run_cell", self._finish_cell)

    def _finish_cell(self, *args: Any) -> None:
        """Nobody sees what comes after this cell: what its later lines asked for is finished now."""
        self.wait()
        self._still.flush()
