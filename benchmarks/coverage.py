"""Model coverage: which models can be explained, is the forward pass theirs, is relevance conserved, at what price.

    python benchmarks/coverage.py                      # everything; goes on where it was stopped
    python benchmarks/coverage.py --group timm --only "swin*"
    python benchmarks/coverage.py --render             # docs/coverage.md from the results so far

One line of JSON per model goes to ``build/coverage.jsonl`` as soon as it is measured. For each model:

* **runs**: a map with the default composite ``auto``, without NaN or infinity;
* **identical**: the traced forward gives the model's own output bit for bit, as computed with gradients enabled or
  under ``torch.no_grad`` (for either, torch itself may take another attention kernel, whose last bit differs);
* **unknown**: calls on the way of relevance that have no rule;
* **untouched**: parameters, buffers, modes, hooks, gradients are afterwards what they were;
* **conserved**: |ΣR_in / ΣR_out − 1| on a bias-free copy in float64 with the composite ``cp_lrp``;
* **gradient x input**: largest difference of LRP-ε, ε → 0, relative to the largest value; on networks where theory says
  that both are equal (linear layers and ReLU only);
* **time**: forward and map over forward and one plain gradient, both with composite ``auto``, interleaved medians.

zennit (with its canonizers) and captum run on torchvision's smaller classifiers for comparison; theirs counts as
conserved within 1e-3.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import gc
import importlib.metadata
import json
import platform
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import zoo  # noqa: E402

from saliency_lrp import composites, rules  # noqa: E402
from saliency_lrp.propagator import RelevancePropagator, Trace  # noqa: E402

#: |conserved - 1| below this counts as conserved; theory says 0.
CONSERVED = 1e-6
#: The same for peers, some of whose stabilisers cannot be made small.
PEER_CONSERVED = 1e-3
#: Stabiliser of the float64 checks: small against any activation.
TINY = 1e-13

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------ what a model is


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What must be the same before and after: values, flags, hooks, gradients, modules."""
    tensors = {
        name: (t.data_ptr(), t._version, t.dtype, t.requires_grad, checksum(t), t.grad)
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    modules = {
        name: (id(m), m.training, sorted(vars(m)), [len(v) for k, v in vars(m).items() if k.endswith("_hooks")])
        for name, m in model.named_modules()
    }
    everywhere = [
        len(v) for k, v in vars(nn.modules.module).items() if k.startswith("_global") and hasattr(v, "__len__")
    ]
    return {"tensors": tensors, "modules": modules, "global hooks": everywhere}


def checksum(t: Tensor) -> int:
    """A sum over the bits of a tensor."""
    return int(t.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64)) if t.numel() else 0


def converted(arguments: Any, dtype: torch.dtype) -> Any:
    """Arguments with floating-point tensors in another dtype."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, arguments)


def same(a: Any, b: Any) -> bool:
    """Whether two outputs have bit-identical tensors."""
    left, right = ([t for t in tree_leaves(v) if isinstance(t, Tensor)] for v in (a, b))
    return len(left) == len(right) and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def own_outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    """What the model gives without this package, with gradients enabled and under ``no_grad``."""
    found = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found.append(tree_map_only(Tensor, Tensor.detach, model(*args, **kwargs)))
    return found


def maps_of(R: Any) -> list[Tensor]:
    return list(R) if isinstance(R, tuple) else [R]


# ------------------------------------------------------------------------------------------------ checks


def check_default(model: nn.Module, subject: zoo.Subject, args: Any, kwargs: Any) -> Row:
    """The default composite in the model's own precision."""
    before = fingerprint(model)
    own = own_outputs(model, args, kwargs)
    trace = RelevancePropagator(model, "auto").trace(*args, **kwargs)
    maps = maps_of(trace.relevance(subject.target, account=True))
    after = fingerprint(model)
    report = trace.report()
    return {
        "finite": all(bool(torch.isfinite(R).all()) for R in maps),
        "nonzero": any(bool((R != 0).any()) for R in maps),
        "identical": any(same(out, trace.output) for out in own),
        "unknown": sorted({w.split(" is not ")[0] for w in trace.warnings()}),
        "untouched": before == after,
        "warnings": report.warnings,
        "auto_conserved": report.conserved,
        "sites": len(trace.sites),
        "default": repr(composites.get("auto")),
    }


def check_conserved(model: nn.Module, subject: zoo.Subject, args: Any, kwargs: Any) -> Row:
    """CP-LRP with a vanishing ε on a bias-free model in float64."""
    trace = RelevancePropagator(model, composites.get("cp_lrp", epsilon=TINY)).trace(*args, **kwargs)
    trace.relevance(subject.target, account=True)
    report = trace.report()
    worst = [f"{r.op} at {r.path!r}: {r.lost / report.seed:+.2g}" for r in report.by_loss()[:3]] if report.seed else []
    return {"conserved": report.conserved - 1, "seed": report.seed, "worst": worst}


def check_gradient(model: nn.Module, subject: zoo.Subject, args: Any, kwargs: Any) -> Row:
    """LRP-ε with ε → 0 against gradient x input, where they must be equal."""
    trace = RelevancePropagator(model, rules.Epsilon(TINY)).trace(*args, **kwargs)
    if not is_relu_network(trace):
        return {"gradient_x_input": None}
    (R,) = maps_of(trace.relevance(subject.target))
    expected = gradient(model, subject, args, kwargs) * args[0]
    return {"gradient_x_input": float((R - expected).abs().max() / expected.abs().max())}


def is_relu_network(trace: Trace) -> bool:
    """Only linear layers, sums, scalings and ReLU: LRP-0 is gradient x input there (Ancona et al. 2018)."""
    return all(
        site.kind in ("linear", "sum", "scale") or (site.kind == "activation" and site.op == "relu")
        for site in trace.sites
    )


def score(out: Any, target: Callable[[Any], Tensor] | None) -> Tensor:
    """What is explained."""
    if target is not None:
        return target(out).sum()
    out = out if isinstance(out, Tensor) else out["logits"]
    return out.gather(1, out.argmax(1, keepdim=True)).sum()


def gradient(model: nn.Module, subject: zoo.Subject, args: Any, kwargs: Any) -> Tensor:
    """The plain gradient at the first input."""
    x = args[0].detach().clone().requires_grad_(True)
    (g,) = torch.autograd.grad(score(model(x, *args[1:], **kwargs), subject.target), x)
    return g


def time_ratio(model: nn.Module, subject: zoo.Subject, args: Any, kwargs: Any, seconds: float = 4.0) -> Row:
    """Seconds of a map and of a plain gradient, forward passes included."""
    if not args:
        return {"ratio": None}  # token ids have no plain gradient
    for p in model.parameters():
        p.requires_grad_(False)  # the gradient at the input is all that is asked of either
    propagator = RelevancePropagator(model, "auto")
    ours: list[float] = []
    plain: list[float] = []
    end = time.perf_counter() + seconds
    while not ours or (len(ours) < 5 and time.perf_counter() < end):
        start = time.perf_counter()
        gradient(model, subject, args, kwargs)
        middle = time.perf_counter()
        propagator.trace(*args, **kwargs).relevance(subject.target, retain=False)
        plain.append(middle - start)
        ours.append(time.perf_counter() - middle)
    return {"seconds": statistics.median(ours), "ratio": statistics.median(ours) / statistics.median(plain)}


# ------------------------------------------------------------------------------------------------ peers


def zennit_composite(name: str, conserving: bool) -> Any:
    """The composite that zennit's documentation recommends, with the canonizers it has for this architecture."""
    from zennit import rules as z
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlus, LayerMapComposite, layer_map_base
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Linear

    families = {"vgg": VGGCanonizer, "res": ResNetCanonizer, "wide_res": ResNetCanonizer}
    canonizer = next((c for start, c in families.items() if name.startswith(start)), SequentialMergeBatchNorm)
    if not conserving:
        return EpsilonPlus(canonizers=[canonizer()])
    table = [*layer_map_base(stabilizer=TINY), (Linear, z.Epsilon(epsilon=TINY))]
    return LayerMapComposite(table, canonizers=[canonizer()])


def with_zennit(model: nn.Module, subject: zoo.Subject, x: Tensor, conserving: bool) -> Tensor:
    """zennit's map of the arg-max, relevance starting at the logit."""
    x = x.clone().requires_grad_(True)
    with zennit_composite(subject.name, conserving).context(model) as modified:
        out = modified(x)
        seed = torch.zeros_like(out).scatter_(1, out.argmax(1, keepdim=True), out.amax(1, keepdim=True).detach())
        (R,) = torch.autograd.grad(out, x, seed)
    return R


def with_captum(model: nn.Module, subject: zoo.Subject, x: Tensor, conserving: bool) -> Tensor:
    """captum's LRP with its default rules."""
    from captum.attr import LRP

    with torch.no_grad():
        target = model(x).argmax(1)
    return LRP(model).attribute(x.clone().requires_grad_(True), target=target)


PEERS: dict[str, Callable[[nn.Module, zoo.Subject, Tensor, bool], Tensor]] = {
    "zennit": with_zennit,
    "captum": with_captum,
}


def check_peer(explain: Any, model: nn.Module, subject: zoo.Subject, x: Tensor, conserving: bool) -> Row:
    """Whether a peer runs, gives finite numbers, and (on a bias-free model) conserves relevance."""
    try:
        R = explain(model, subject, x, conserving)
        finite = bool(torch.isfinite(R).all())
        if not conserving:
            return {"runs": True, "finite": finite}
        with torch.no_grad():
            seed = float(model(x).amax(1).sum())
        return {"conserved": float(R.sum()) / seed - 1}
    except TimedOut:
        raise
    except Exception as error:  # whatever a peer raises is its result
        return {"runs" if not conserving else "error": f"{type(error).__name__}: {error}"[:120]}


# ------------------------------------------------------------------------------------------------ one model


class TimedOut(BaseException):
    """A model took too long. Not an ``Exception``: no model catches it."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise :class:`TimedOut` after this many seconds."""

    def stop(*_: Any) -> None:
        raise TimedOut

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure_default(subject: zoo.Subject, row: Row, timed: bool = True) -> nn.Module:
    """What depends on the default composite, and the time."""
    model = subject.model()
    args, kwargs = subject.inputs(1)
    row["parameters"] = sum(p.numel() for p in model.parameters())
    row["input"] = [list(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    row.update(check_default(model, subject, args, kwargs))
    if timed:
        row.update(time_ratio(model, subject, args, kwargs))
    return model


def measure(subject: zoo.Subject, row: Row, timed: bool = True) -> None:
    """Fill ``row``, step by step, so that what was found before a failure stays."""
    model = measure_default(subject, row, timed).double()
    args, kwargs = subject.inputs(1)
    args, kwargs = converted((args, kwargs), torch.float64)
    row.update(check_gradient(model, subject, args, kwargs))
    zoo.bias_free(model, inplace=True)
    row.update(check_conserved(model, subject, args, kwargs))


def measure_peers(subject: zoo.Subject, row: Row) -> None:
    """What zennit and captum do with the same model."""
    model, (x,) = subject.model(), subject.inputs(1)[0]
    for name, explain in PEERS.items():
        row[name] = check_peer(explain, copy.deepcopy(model), subject, x, conserving=False)
    zoo.bias_free(model.double(), inplace=True)
    for name, explain in PEERS.items():
        if row[name].get("runs") is True:
            row[name].update(check_peer(explain, copy.deepcopy(model), subject, x.double(), conserving=True))


def safely(run: Callable[[zoo.Subject, Row], Any], subject: zoo.Subject, limit: int) -> Row:
    """The row of a model, whatever happens."""
    row: Row = {"name": subject.name, "group": subject.group}
    start = time.perf_counter()
    try:
        with time_limit(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(subject, row)
    except TimedOut:
        row["error"] = f"more than {limit} s"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
        row["traceback"] = traceback.format_exc(limit=-6)
    row["wall"] = round(time.perf_counter() - start, 1)
    gc.collect()
    return row


# ------------------------------------------------------------------------------------------------ the document


def verdict(row: Row) -> bool:
    """Whether everything that this page claims holds for a model."""
    return (
        "error" not in row
        and row["finite"]
        and row["nonzero"]
        and row["identical"]
        and row["untouched"]
        and not row["unknown"]
        and abs(row["conserved"]) < CONSERVED
        and (row["gradient_x_input"] is None or row["gradient_x_input"] < 1e-6)
    )


#: Why a model does not conserve relevance where theory forbids it.
REASONS: dict[str, str] = {
    "timm gemma4_vit_167m": "its code subtracts 0.5 from pixels; a constant takes its share of the relevance",
    "timm csatv2": "its code adds 128 (RGB to YCbCr); a constant takes its share of the relevance",
}


def is_current(row: Row) -> bool:
    """Whether a row's map and time are those of today's default composite."""
    return row.get("default") == repr(composites.get("auto"))


def cell(row: Row, key: str) -> str:
    """One value as it stands in the table."""
    value = row.get(key)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if key in ("conserved", "gradient_x_input"):
        return f"{abs(value):.0e}" if abs(value) < CONSERVED else f"**{abs(value):.2g}**"
    if key == "ratio":
        return f"{value:.2f}"
    return ", ".join(value) or "none"


def peer_cell(row: Row, name: str) -> str:
    """What a peer did with a model."""
    found = row.get(name)
    if not found:
        return "–"
    if found.get("runs") is not True:
        return "raises"
    if not found.get("finite"):
        return "NaN or inf"
    drift = found.get("conserved")
    if drift is None or drift != drift:
        return "runs, not finite without bias"
    return "conserved" if abs(drift) < PEER_CONSERVED else f"off by {abs(drift):.1g}"


def table(rows: list[Row], peers: bool) -> list[str]:
    """A group's models, one per line."""
    head = ["model", "input", "runs", "identical", "unknown", "untouched", "conserved to", "gradient × input", "time"]
    head += list(PEERS) if peers else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        shape = " ".join("×".join(map(str, s[1:])) for s in row.get("input", []))
        if "error" in row:
            cells = [row["name"], shape, f"**no**: {row['error'][:80]}", *[""] * (len(head) - 3)]
        else:
            row["runs"] = bool(row["finite"] and row["nonzero"])
            keys = ("runs", "identical", "unknown", "untouched", "conserved", "gradient_x_input", "ratio")
            cells = [row["name"], shape, *(cell(row, k) for k in keys)]
            cells += [peer_cell(row, p) for p in PEERS] if peers else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


TITLES = {
    "torchvision": "torchvision classifiers",
    "timm": "timm: the smallest model of every module",
    "video": "torchvision video classifiers",
    "segmentation": "torchvision segmentation (target: mean score of one class)",
    "transformers": "Hugging Face transformers (token ids or pixels)",
}


def summary(rows: list[Row]) -> list[str]:
    """Counts, group by group."""
    lines = ["| group | models | run, finite | identical | no unknown op | untouched | conserved | median time |"]
    lines.append("|" + "---|" * 8)
    for group, title in TITLES.items():
        mine = [r for r in rows if r["group"] == group]
        good = [r for r in mine if "error" not in r]
        if mine:
            counts = [
                sum(bool(r["finite"] and r["nonzero"]) for r in good),
                sum(r["identical"] for r in good),
                sum(not r["unknown"] for r in good),
                sum(r["untouched"] for r in good),
                sum(abs(r["conserved"]) < CONSERVED for r in good),
            ]
            ratios = [r["ratio"] for r in good if r.get("ratio")]
            median = f"{statistics.median(ratios):.2f}" if ratios else "–"
            lines.append(f"| {title} | {len(mine)} | " + " | ".join(map(str, counts)) + f" | {median} |")
    for peer in PEERS:
        mine = [r[peer] for r in rows if r.get(peer)]
        runs = [p for p in mine if p.get("runs") is True]
        kept = [p for p in runs if abs(p.get("conserved", float("nan"))) < PEER_CONSERVED]
        finite = [p for p in runs if p.get("finite")]
        if mine:
            lines.append(
                f"| {peer} on torchvision's | {len(mine)} | {len(finite)} ({len(runs)} run) | | | | {len(kept)} | |"
            )
    return lines


def render(rows: list[Row]) -> str:
    """The page."""
    packages = ("torch", "torchvision", "timm", "transformers", "zennit", "captum")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    checks = (__doc__ or "").split("For each model:")[1].strip()
    lines = [
        "# Model coverage",
        "",
        f"Made by `make coverage` on {date.today()}: Python {platform.python_version()}, {versions}; "
        f"{platform.machine()} CPU, {torch.get_num_threads()} thread, shared with other work (so times are rough). "
        "Weights are random and seeded, batch norms calibrated, heads and layer scales non-zero (`benchmarks/zoo.py`); "
        "inputs are as small as each architecture allows. For each model:",
        "",
        checks,
        "",
        *summary(rows),
    ]
    old = sum(not is_current(r) for r in rows)
    if old:
        lines += [
            "",
            f"{old} of {len(rows)} rows hold the map (runs, unknown) and the time of an earlier default composite; "
            "`benchmarks/coverage.py --default` measures those again.",
        ]
    named = [r for r in rows if r["name"] in REASONS]
    if named:
        lines += ["", "## Not conserved, and why", ""]
        lines += [f"* **{r['name']}**: {REASONS[r['name']]}" for r in named]
    for group, title in TITLES.items():
        mine = [r for r in rows if r["group"] == group]
        if mine:
            lines += ["", f"## {title}", "", *table(mine, peers=any(r.get("zennit") for r in mine))]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ command line


def read(path: Path) -> dict[str, Row]:
    """Results so far, the last of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def append(path: Path, row: Row) -> None:
    """Keep a result; the last line of a model counts."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def tell(row: Row) -> None:
    """One line while it runs."""
    told = {k: row.get(k) for k in ("error", "identical", "conserved", "gradient_x_input", "unknown", "ratio")}
    why = "" if verdict(row) else f" {row.get('worst')} {row.get('warnings')}"
    print("ok  " if verdict(row) else "FAIL", row["name"], told, f"{row['wall']} s{why}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure what has not been measured yet, and write the page."""
    root = HERE.parent
    parser = argparse.ArgumentParser(description="Measure model coverage.")
    parser.add_argument("--group", action="append", choices=list(zoo.GROUPS), help="only this group (repeatable)")
    parser.add_argument("--only", default="*", help="only models whose name matches this pattern")
    parser.add_argument("--again", action="store_true", help="measure also what has been measured before")
    parser.add_argument(
        "--default", action="store_true", help="measure maps and times again that an earlier default made"
    )
    parser.add_argument("--failed", action="store_true", help="measure again what did not pass")
    parser.add_argument("--no-peers", action="store_true", help="leave zennit and captum out")
    parser.add_argument(
        "--largest-peer", type=float, default=60, help="peers run on models up to this (million parameters)"
    )
    parser.add_argument("--render", action="store_true", help="only write the page from the results so far")
    parser.add_argument("--limit", type=int, default=600, help="seconds per model")
    parser.add_argument("--results", type=Path, default=root / "build" / "coverage.jsonl")
    parser.add_argument("--out", type=Path, default=root / "docs" / "coverage.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    chosen = [] if options.render else zoo.subjects(tuple(options.group or zoo.GROUPS))
    for subject in chosen:
        if not fnmatch.fnmatch(subject.name, options.only):
            continue
        row = read(options.results).get(subject.name)
        if options.default and row is not None and "error" not in row and not is_current(row):
            row = {**row, **safely(measure_default, subject, options.limit)}
            append(options.results, row)
            tell(row)
        elif options.again or row is None or (options.failed and not verdict(row)):
            measured = safely(measure, subject, options.limit)
            row = {**{k: row[k] for k in PEERS if row is not None and k in row}, **measured}
            append(options.results, row)
            tell(row)
        small = row.get("parameters", 0) < 1e6 * options.largest_peer
        if subject.group == "torchvision" and not options.no_peers and small and not all(p in row for p in PEERS):
            found = safely(measure_peers, subject, options.limit)
            row.update({p: found[p] for p in PEERS if p in found})
            append(options.results, row)
            print("     ", subject.name, {p: peer_cell(row, p) for p in PEERS}, flush=True)
    rows = read(options.results)
    options.out.write_text(render(list(rows.values())))
    return 0 if all(verdict(r) or r["name"] in REASONS for r in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
