"""The user's model and process as they were found: interrupts at any instruction, threads, what earlier calls left."""

from __future__ import annotations

import contextlib
import dis
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from saliency_lrp import LrpExplainer
from saliency_lrp.errors import InputError
from saliency_lrp.explainers import registry
from saliency_lrp.model import as_found as frames
from saliency_lrp.model.as_found import as_found
from saliency_lrp.propagator import RelevancePropagator

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()


def lin(a: int, b: int) -> nn.Linear:
    return nn.Linear(a, b, bias=False).double()


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3))


class Rewriting(nn.Module):
    """Writes into a buffer, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mem", torch.zeros(4, 8))

    def forward(self, x):
        self.mem.copy_(F.relu(self.a(x)))
        return self.b(F.dropout(self.mem.clone(), 0.1, training=True))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(x[:, None]).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {"normed": normed, "rewriting": Rewriting, "attending": Attending}
METHODS = ("lrp", "grad_x_input", "guided_backprop", "deeplift")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double().train()


def explain(model: nn.Module, method: str) -> Tensor:
    if method == "lrp":
        return RelevancePropagator(model, "epsilon_plus").trace(X).relevance(0, account=True)
    return registry.get(method, model).explain(X, 0)


def state(model: nn.Module) -> dict[str, object]:
    """What an explanation must leave alone, of the model and of the process."""
    of_model = {
        "training": [m.training for m in model.modules()],
        "hooks": [[len(getattr(m, name)) for name in frames.HOOK_TABLES] for m in model.modules()],
        "forwards": ["forward" in vars(m) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "graphs": [(b.requires_grad, b.grad_fn, hasattr(b, "_saliency_lrp")) for b in model.buffers()],
        "weights": [p.detach().clone().numpy().tobytes() for p in model.parameters()],
        "steps": [m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm1d)],
    }
    return of_model | {
        "global hooks": [len(t) for t in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)],
        "interception": torch._C._len_torch_function_stack(),
        "saved tensors": frames.top_hooks(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "random": torch.get_rng_state().numpy().tobytes(),
        "handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "open": len(frames._open),
        "modes": len(frames._modes),
    }


# ------------------------------------------------------------------------------------------------ interrupts


#: Instructions that begin by looking for signals: the start of a function, the next round of a loop. (After calls of C
#: functions CPython looks, too, which no tracing can tell: `make faults` has real signals at any time.)
CHECKS = ("RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")


class Interrupting:
    """Sends this process a real SIGINT at the n-th place in the package where CPython would handle one."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.count = 0

    def __call__(self, frame, event, arg):
        if "saliency_lrp/" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame, event, arg):
        if event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(CHECKS):
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
        return self.step

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *exception):
        sys.settrace(self.before)


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else traces: a debugger, coverage")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_an_interrupt_at_any_instruction_leaves_nothing(name, method):
    model = build(name)
    torch.manual_seed(1)
    wanted, before = explain(model, method), state(model)
    with Interrupting() as whole:
        explain(model, method)
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(1, whole.count, (12,), generator=generator).tolist()
    points += [1, 8, 20, 40, whole.count - 40, whole.count - 20, whole.count - 4, whole.count]
    interrupted = 0
    for at in points:
        model = build(name)
        torch.manual_seed(1)
        before = state(model)
        try:
            with Interrupting(at):
                explain(model, method)
        except KeyboardInterrupt:
            interrupted += 1
        after = state(model)
        assert {k for k in after if after[k] != before[k]} == set(), at
        torch.testing.assert_close(explain(model, method), wanted, rtol=1e-12, atol=1e-12)
        assert state(model) == before, at
    assert interrupted >= len(points) - 1  # and no signal was lost


def test_two_interrupts_while_the_model_is_put_back():
    """The second Ctrl-C of an impatient user comes in the middle of the frame's end."""
    model = build("normed")
    before = state(model)
    frame = as_found(model)
    with pytest.raises(KeyboardInterrupt), frame:
        frame.undoing(lambda: signal.raise_signal(signal.SIGINT))
        frame.undoing(lambda: signal.raise_signal(signal.SIGINT))
        raise KeyboardInterrupt
    assert state(model) == before


def test_a_handler_of_the_models_own_is_left_alone():
    def mine(number, frame):
        pass

    class Own(nn.Linear):
        def forward(self, x):
            signal.signal(signal.SIGUSR1, mine)
            return super().forward(x)

    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        RelevancePropagator(Own(6, 3).double()).trace(X).relevance(0)
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_does_not_raise_interrupts_nothing():
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        wanted = explain(build("normed"), "lrp")
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        assert torch.equal(explain(build("normed"), "lrp"), wanted)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_who_waits_for_another_thread_can_be_interrupted():
    model, inside, done = build("normed"), threading.Event(), threading.Event()

    def hold():
        with as_found(model):
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.get("grad_x_input", model).explain(X, 0)
        assert time.monotonic() - started < 10
    finally:
        done.set()
        thread.join()
    registry.get("grad_x_input", model).explain(X, 0)  # nobody holds it any more
    assert all(m.training for m in model.modules())


# ------------------------------------------------------------------------------------------------ exceptions, modes


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("fails", [False, True])
def test_gradient_modes_and_random_state_come_back(around, fails):
    class Random(nn.Module):
        def forward(self, x):
            out = F.dropout(x[:, :3] * torch.rand(3).double(), 0.5, training=True)
            if fails:
                raise KeyError("stop")
            return out

    model = Random()
    torch.manual_seed(3)
    with around():
        before = state(model)
        try:
            RelevancePropagator(model, "epsilon").trace(X).relevance(0)
            assert not fails
        except KeyError:
            assert fails
        assert state(model) == before


def test_what_a_lost_frame_left_is_mended_by_the_next():
    """As if an exception had come between two instructions, where nothing can hold it."""
    model = build("normed")
    before = state(model)

    def lost() -> None:
        as_found(model).__enter__()

    lost()
    assert not model.training and frames._open
    wanted = explain(build("normed"), "lrp")
    assert torch.equal(explain(model, "lrp"), wanted)
    assert state(model) == before


def test_a_frame_lost_by_another_thread_is_mended():
    model = build("normed")
    before = state(model)
    thread = threading.Thread(target=lambda: as_found(model).__enter__())
    thread.start()
    thread.join()
    assert not model.training
    explain(model, "grad_x_input")
    assert state(model) == before


def test_frames_nest_and_generators_may_hold_them():
    model = build("normed")

    def steps():
        with as_found(model):
            yield
            yield

    held = steps()
    next(held)
    explain(model, "lrp")
    assert not model.training  # the generator still holds the frame
    next(held)
    held.close()
    assert all(m.training for m in model.modules())


# ------------------------------------------------------------------------------------------------ threads


class Part(nn.Module):
    """A model around modules that another one has, too."""

    def __init__(self, shared: nn.Module, meet: Callable[[], None]) -> None:
        super().__init__()
        self.shared, self.head, self.meet = shared, lin(8, 3), meet

    def forward(self, x):
        self.meet()
        return self.head(self.shared(x))


def overlapping(first: Callable[[nn.Module], object], second: Callable[[nn.Module], object], shared: nn.Module) -> None:
    """Two explanations, of which the first begins first and ends first, while the second is in its forward."""
    one, two = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    a = Part(shared, lambda: (one.set(), two.wait(3)))
    b = Part(shared, lambda: (two.set(), threads[0].join(10)))
    threads += [threading.Thread(target=first, args=(a,)), threading.Thread(target=second, args=(b,))]
    threads[0].start()
    one.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def raising(model: nn.Module) -> None:
    model.head = nn.Linear(1, 1).double()
    with pytest.raises(InputError):
        explain(model, "lrp")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda m: explain(m, "lrp"), lambda m: explain(m, "lrp")),
        (raising, lambda m: explain(m, "lrp")),
        (lambda m: explain(m, "lrp"), raising),
        (lambda m: explain(m, "lrp"), lambda m: explain(m, "grad_x_input")),
        (lambda m: explain(m, "grad_x_input"), lambda m: explain(m, "lrp")),
    ],
)
def test_models_that_share_modules_in_two_threads(first, second):
    shared = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sequential(nn.Dropout(0.5))).double().train()
    shared[2].eval()  # a frozen part stays one
    overlapping(first, second, shared)
    assert [m.training for m in shared.modules()] == [True, True, True, False, False]
    assert int(shared[1].num_batches_tracked) == 0 and not frames._modes and not frames._open


def test_many_threads_on_one_model():
    model = build("normed")
    wanted, found = explain(model, "lrp"), []
    threads = [threading.Thread(target=lambda: found.extend(explain(model, "lrp") for _ in range(5))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(torch.equal(R, wanted) for R in found)
    assert all(m.training for m in model.modules()) and not frames._modes


# ------------------------------------------------------------------------------------------------ a pool of threads


class Pooled(nn.Module):
    """Two branches and a head; a way to run the first branch."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.way = lin(6, 5), lin(6, 5), lin(10, 3), way

    def forward(self, x):
        first = self.way(lambda: F.relu(self.a(x)))
        return self.head(torch.cat([first, F.relu(self.b(x))], 1))


def in_a_pool(run):
    with ThreadPoolExecutor(2) as pool:
        return pool.submit(run).result()


def mapped(run):
    with ThreadPoolExecutor(2) as pool:
        return next(pool.map(lambda task: task(), [run]))


def within_another_task(run):
    with ThreadPoolExecutor(2) as pool:
        return pool.submit(lambda: pool.submit(run).result()).result()


def in_a_thread(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


def in_a_pool_of_multiprocessing(run):
    from multiprocessing.pool import ThreadPool

    with ThreadPool(1) as pool:
        return pool.apply(run)


def without_gradients(run):
    def task():
        with torch.no_grad():
            return run()

    return in_a_pool(task)


def in_inference_mode(run):
    def task():
        with torch.inference_mode():
            return run()

    return in_a_pool(task)


ELSEWHERE = [
    in_a_pool, mapped, within_another_task, in_a_thread, in_a_pool_of_multiprocessing, without_gradients,
    in_inference_mode,
]  # fmt: skip


@pytest.mark.parametrize("way", ELSEWHERE, ids=lambda way: way.__name__)
def test_work_in_other_threads_of_the_model_is_right_or_named(way):
    """The gradient's rule is the gradient; what no other rule has seen is in the report."""
    model, plain = Pooled(way).train(), Pooled(lambda run: run())
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(plain(leaf)[:, 0].sum(), leaf)
    before = state(model)
    for form in ("trace", "bound_trace"):
        trace = getattr(RelevancePropagator(model, "gradient"), form)(X)
        torch.testing.assert_close(trace.relevance(0, seed="one"), gradient, rtol=1e-9, atol=1e-12)
        trace = getattr(RelevancePropagator(model, "epsilon_plus"), form)(X)
        R, report = trace.relevance(0), trace.report()
        assert R.shape == X.shape and any("relu" in name and "mm" in name for name in report.unknown)
        assert any("other threads" in note for note in report.notes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = registry.get("grad_x_input", model).explain(X, 0)
        registry.get("guided_backprop", model).explain(X, 0)
    torch.testing.assert_close(found, gradient * X, rtol=1e-9, atol=1e-12)
    assert any("another thread" in str(w.message) for w in said)  # of guided backprop, which changes ReLUs
    assert state(model) == before


def test_a_pool_that_outlives_the_explanation_is_left_as_it_was():
    def modes():
        return torch._C._len_torch_function_stack(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with ThreadPoolExecutor(1) as pool:
        model = Pooled(lambda run: pool.submit(run).result())
        explain(model, "lrp")
        explain(model, "grad_x_input")
        assert pool.submit(modes).result() == (0, True, False)
        with torch.no_grad():
            assert not pool.submit(lambda: torch.no_grad().__enter__() or torch.is_grad_enabled()).result()
    assert "submit" not in vars(pool) and ThreadPoolExecutor.submit.__module__ == "concurrent.futures.thread"
    assert threading.Thread.start.__module__ == "threading"


# ------------------------------------------------------------------------------------------------ refused in words


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_refused(layout):
    nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)], layout=layout)
    for ask in (
        lambda: RelevancePropagator(nn.Linear(6, 3)).trace(nested),
        lambda: LrpExplainer(nn.Linear(6, 3)).explain(nested),
    ):
        with pytest.raises(InputError, match="nested tensor.*padded"):
            ask()
    with pytest.raises(InputError, match="nested"):
        registry.get("grad_x_input", nn.Linear(6, 3)).explain(nested, 0)
    holding = nn.Linear(6, 3)
    holding.register_buffer("table", nested)
    with pytest.raises(InputError, match="'table' is a nested tensor.*padded"):
        RelevancePropagator(holding)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor, init_device_mesh
from saliency_lrp import RelevancePropagator, get_saliency
from saliency_lrp.errors import InputError
mesh = init_device_mesh("cpu", (1,))
holding = nn.Linear(6, 3)
holding.register_buffer("table", distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
models = [
    FSDP(nn.Linear(6, 3), device_id=torch.device("cpu")),
    nn.Sequential(FSDP(nn.Linear(6, 3), device_id=torch.device("cpu"))),
    distribute_module(nn.Linear(6, 3), mesh),
    fully_shard(nn.Sequential(nn.Linear(6, 3)), mesh=mesh),
    holding,
]
for model in models:
    asks = (
        lambda: RelevancePropagator(model),
        lambda: get_saliency(model, None, torch.randn(2, 6), method="grad_x_input"),
    )
    for ask in asks:
        try:
            ask()
        except InputError as error:
            print(error)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_sharded_models_are_refused(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "store")],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert len(said) == 10, done.stderr[-2000:]
    assert all("FSDP" in line and "unsharded" in line for line in said[:4])
    assert all("DTensor" in line and "full_tensor" in line for line in said[4:])
    assert "'table'" in said[-1]


@pytest.mark.parametrize("form", ["bound_trace", "trace"])
def test_an_interrupt_on_torchs_way_around_a_mode_leaves_no_interception(form):
    """Torch takes a mode off by a generator; interrupted there, it would put it back when the traceback goes."""
    from torch.overrides import _get_current_function_mode_stack, _pop_mode_temporarily

    detour = inspect.unwrap(_pop_mode_temporarily).__code__
    model, x, met = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(1, 4), []

    def interrupt(frame, event, arg):
        generator = getattr(frame.f_locals.get("self"), "gen", None)
        here = frame.f_code.co_name == "__exit__" and getattr(generator, "gi_code", None) is detour
        if here and event == "call" and not met:
            met.append(frame.f_code.co_name)
            raise KeyboardInterrupt
        return interrupt if here else None

    class Asks(nn.Module):
        def forward(self, v):
            return torch.nn.functional.layer_norm(v, v.shape[-1:])  # a function of Python, which asks the modes itself

    model.append(Asks())
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            getattr(RelevancePropagator(model), form)(x)
    finally:
        sys.settrace(before)
    gc.collect()
    assert met and not _get_current_function_mode_stack()


@pytest.mark.parametrize("method", ["grad_x_input", "deeplift", "integrate_grad"])
def test_an_interrupt_while_torch_has_taken_a_mode_off_stays_one(method):
    """Between torch's taking it off and its ``try``: the mode is on no stack then, and ends all the same."""
    from torch.overrides import _pop_mode_temporarily

    detour, model, met = inspect.unwrap(_pop_mode_temporarily).__code__, build("normed"), []

    def interrupt(frame, event, arg):
        if frame.f_code is not detour:
            return interrupt if event == "call" else None
        if event == "line" and "old" in frame.f_locals and not met:
            met.append(frame.f_lineno)
            raise KeyboardInterrupt
        return interrupt

    before = state(model)
    explainer = registry.get(method, model)
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            explainer.explain(X, 0)
    finally:
        sys.settrace(None)
    assert met and state(model) == before
