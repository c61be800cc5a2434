"""What `unmask bench` measures: this machine, the profile's dLLM or another, the user's policies.

The same prompts are decoded by the engine and by the reference loop in turn; then come single canvases, where a loop
has least to gain, a training iteration in its parts, and the policy's step in torch and in ONNX Runtime. An 8B dLLM is
added by arithmetic. Left out: memory, caches and a large vocabulary, in tests/benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import SettingsError
from . import throughput
from .resolve import active_profile, candidate, open_named, place

if TYPE_CHECKING:
    from ..bench.decoding import Case, Comparison
    from ..bench.training import IterationCost
    from ..decode.prompts import Prompts
    from ..denoisers import LoadedDenoiser
    from ..settings import Settings
    from ..stages.common.workspace import Workspace

RULES = ("threshold:0.9", "entropy_bound:0.3", "confidence:1")
FEW, GROWTH = 8, 4  # prompts that a case begins with, and how many times more come next


@dataclass(frozen=True)
class Request:
    """policies: names as `unmask compare` takes them, beside fresh policies with legal empty draws, those that the
    pipeline has made, and RULES. random: canvas length of a random dLLM (4 layers, width 128, so many tokens in its
    ``vocabulary``) that stands in for model and data. dtype: of its weights or the model's, None for the profile's.
    count: prompts, and about as many rows in the training iteration. rows: in flight, and in the reference's batch.
    repeats: counted pairs of runs, at most. seconds: for all of it; what is left of them is shared by what is left to
    measure, with one counted pair each at least, of ``FEW`` prompts where there is no time for all."""

    policies: Sequence[str] = ()
    model: str | None = None
    random: int | None = None
    vocabulary: int = 68
    dtype: str | None = None
    count: int = 128
    rows: int = 64
    repeats: int = 3
    seconds: float = 100.0


def bench(request: Request, show: Callable[[Any], None]) -> dict[str, Any]:
    """Measures, shows every table as soon as it is known, and returns everything as plain JSON values.

    SettingsError or DataError where the profile's model or prompts are not there (``random`` needs neither).
    """
    from ..bench import single, tables

    workspace, settings = active_profile(anywhere=request.random is not None)
    denoiser, prompts, block = _subject(request, workspace, settings)
    facts = machine(denoiser, workspace.root)
    show(tables.machine(facts))
    cases, fresh = _cases(request, workspace, settings, denoiser), fresh_policies(settings, denoiser.width)
    clock = _Clock(request.seconds, len(cases) + len(single.CASES) + len(fresh) + 1, show)
    decoded: list[Comparison] = []
    for case in cases:
        share = clock.next(f"decoding: {case.name}")
        decoded.append(_decoding(denoiser, prompts, block, case, request.repeats, share))
    show(tables.decoding(decoded))
    show(tables.rows(decoded))
    show(tables.shares(decoded))
    alone = [single.single(c, request.repeats, clock.next(f"one canvas: {c.name}")) for c in single.CASES]
    show(tables.single(alone))
    trained = _training(request, workspace, settings, (denoiser, prompts, block), clock.next("a training iteration"))
    show(tables.training(trained))
    steps = _policy_steps(request, fresh, clock)
    show(tables.policy_step(steps))
    large = throughput.on_paper()
    show(tables.on_paper(throughput.IN_SHORT, map(throughput.cells_in_short, large)))
    return {
        "machine": facts,
        "request": asdict(request),
        "decoding": [asdict(row) for row in decoded],
        "single": alone,
        "training": asdict(trained),
        "policy_step": steps,
        "on_paper": [asdict(step) | {"tokens_per_second": step.tokens_per_second} for step in large],
    }


def _decoding(
    denoiser: LoadedDenoiser, prompts: Prompts, block: int | None, case: Case, repeats: int, seconds: float
) -> Comparison:
    """The comparison on all prompts; on fewer where the seconds do not reach, at the least on ``FEW``."""
    from ..bench.decoding import compare

    begin, count = time.monotonic(), FEW
    while True:
        some = prompts.take(range(min(count, len(prompts))))
        whole, before = len(some) == len(prompts), time.monotonic()
        found = compare(denoiser, some.job(block), case, repeats if whole else 1, seconds - (before - begin))
        now = time.monotonic()
        if whole or now - begin + GROWTH * (now - before) > seconds:
            return found
        count *= GROWTH


def _policy_steps(request: Request, policies: Mapping[str, Any], clock: _Clock) -> list[dict[str, Any]]:
    from ..bench.policy_step import SIZES, policy_step

    return [
        {"policy": name, **row}
        for name, policy in policies.items()
        for row in policy_step(policy, SIZES, 5 * request.repeats, seconds=clock.next(f"the step of the {name} policy"))
    ]


class _Clock:
    """Says what is measured next, and shares out the time that is left."""

    def __init__(self, seconds: float, count: int, show: Callable[[Any], None]) -> None:
        self.end, self.count, self.done, self.show = time.monotonic() + seconds, count, 0, show
        show(f"{count} measurements in about {seconds:.0f} s; more or fewer with --seconds")

    def next(self, what: str) -> float:
        """Seconds for it."""
        left = max(0.0, self.end - time.monotonic())
        share = left / (self.count - self.done)
        self.done += 1
        self.show(f"{self.done}/{self.count}, {left:.0f} s left: {what}")
        return share


def fresh_policies(settings: Settings, width: int) -> dict[str, Any]:
    """Untrained policies, of the profile's shape, of the published one and the default coupled one; the same ones each
    time."""
    import torch

    from ..policies.confidence import PAPER, ConfidencePolicy
    from ..policies.coupled import CoupledPolicy, CoupledShape
    from ..stages.influence import fresh_policy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        paper, coupled = ConfidencePolicy(PAPER), CoupledPolicy(CoupledShape())
    own = fresh_policy(settings.policy, width, 0)
    return {"profile's": own.eval(), "paper's": paper.eval(), "coupled": coupled.eval()}


def _subject(request: Request, workspace: Workspace, settings: Settings) -> tuple[LoadedDenoiser, Prompts, int | None]:
    """The denoiser, prompts for it, and the block length."""
    if request.random is not None:
        from ..bench.models import random_model, random_prompts

        denoiser, encoder, task = random_model(
            request.random, vocabulary=request.vocabulary, dtype=request.dtype or "float32"
        )
        return denoiser, random_prompts(task, encoder, request.count), None
    from ..decode.prompts import Prompts
    from ..stages.common.models import open_denoiser

    which = settings.domain.model
    if request.model is None and request.dtype is None:
        denoiser, encoder = open_denoiser(workspace, which)
    else:
        source = request.model or str(workspace.outputs / "pretrain" / which)
        dtype = request.dtype or settings.models[which].dtype
        denoiser, encoder = open_named(source, dtype, checkpoint=request.model is not None)
    data = workspace.task(settings.evaluate.gate_task)
    prompts = Prompts.of(data.task(), data.examples("test")[: request.count], encoder)
    return denoiser, prompts, settings.decode.block_length


def _cases(request: Request, workspace: Workspace, settings: Settings, denoiser: LoadedDenoiser) -> list[Case]:
    """Fresh policies near a cold start, what the pipeline has made, the rules; drawn as they would be used."""
    from ..bench.decoding import Case
    from ..decode.job import DecodeOptions

    legal = DecodeOptions(rows=request.rows, force_commit=False)
    cases = [
        Case(f"cold start, {name} policy", policy.to(denoiser.device), legal)
        for name, policy in fresh_policies(settings, denoiser.width).items()
    ]
    made = [str(workspace.outputs / stage / "policy") for stage in ("distill", "train")]
    made = [path for path in made if Path(path).is_dir()] if request.random is None and request.model is None else []
    for name in dict.fromkeys([*made, *RULES, *request.policies]):
        found = candidate(name, workspace, settings, settings.decode.choose)
        reads = getattr(getattr(found.policy, "shape", None), "features", 0)
        if reads not in (0, denoiser.width):
            raise SettingsError(
                f"policy {name} reads hidden states of width {reads}, this dLLM has {denoiser.width}. "
                f"Bench it over the dLLM it was trained on."
            )
        place([found.policy], denoiser)
        cases.append(Case(found.setting, found.policy, DecodeOptions(rows=request.rows, choose=found.choose)))
    return cases


def _training(
    request: Request,
    workspace: Workspace,
    settings: Settings,
    subject: tuple[LoadedDenoiser, Prompts, int | None],
    seconds: float,
) -> IterationCost:
    """An iteration of the profile's training, with ``request.count`` rows at most."""
    from ..bench.training import training_iteration
    from ..policies import store
    from ..stages.train import plan_of
    from ..trainers.reinforce import Method

    denoiser, prompts, block = subject
    plan, objective = plan_of(settings.train, settings.decode)
    few = max(1, min(plan.prompts, request.count // plan.group))
    plan = replace(plan, prompts=few, rollout_rows=request.rows, block_length=block, experts=0)
    distilled = workspace.outputs / "distill" / "policy"
    own = request.random is None and request.model is None and distilled.is_dir()
    policy = store.load(distilled) if own else fresh_policies(settings, denoiser.width)["profile's"]
    method = Method(plan, objective)
    return training_iteration(policy.to(denoiser.device), denoiser, prompts, method, request.repeats, seconds)


def machine(denoiser: LoadedDenoiser, root: Path) -> dict[str, Any]:
    """What the figures hold for: machine, code, model."""
    import platform

    import torch

    from ..stages.common.runfile import code_version

    weight = next(denoiser.model.parameters())
    commit, changed = code_version(root)
    return {
        "system": platform.platform(),
        "processor": processor(),
        "device": str(denoiser.device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit[:12] + " and changes" * bool(changed),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "width": denoiser.width,
        "layers": denoiser.model.config.num_hidden_layers,
        "vocabulary": denoiser.vocabulary,
        "parameters": sum(p.numel() for p in denoiser.model.parameters()),
    }


def processor() -> str:
    """The processor's name as the system tells it, or the kind of machine."""
    import platform

    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
