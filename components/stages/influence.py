"""Stage influence: a fresh policy. A coupled one learns the pair shifts of the frozen dLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.files import remove, write_csv
from ..settings import Coupled, Decode, Domain, Feature, Influence, Policy
from .common.progress import progress
from .common.runfile import code_of, content_hash, digest
from .common.workspace import Workspace

if TYPE_CHECKING:
    from ..policies.coupled import CoupledPolicy
    from ..policies.store import LearnedPolicy
    from ..trainers.influence import Kept, Source


def influence(
    workspace: Workspace, domain: Domain, policy: Policy, decode: Decode, influence: Influence
) -> dict[str, float]:
    """P/influence/policy, P/influence/epochs.csv; metrics: the last epoch's loss and unexplained shares.

    Killed, it goes on from .checkpoints/<profile>/influence-<identity> and ends at the same bits.
    """
    from ..denoisers.fingerprint import fingerprint_of
    from ..policies import store
    from ..policies.coupled import CoupledPolicy
    from ..trainers.influence import Source
    from .common.models import domain_prompts, open_denoiser, reference_of

    denoiser, encoder = open_denoiser(workspace, domain.model)
    fresh = fresh_policy(policy, denoiser.width, influence.seed).to(denoiser.device)
    fresh.denoiser = fingerprint_of(denoiser)
    figures: dict[str, float] = {"parameters": float(sum(p.numel() for p in fresh.parameters()))}
    epochs: list[dict[str, float]] = []
    if isinstance(fresh, CoupledPolicy) and fresh.shape.pair_shifts:
        prompts = domain_prompts(workspace, domain, encoder, ["train"])
        source = Source(reference_of(influence.reference, influence.value), denoiser, prompts)
        kept = _kept(workspace, domain, influence)
        figures["forwards"], epochs = _fitted(fresh, source, kept, influence, decode)
        figures |= {name.removeprefix("influence/"): value for name, value in epochs[-1].items() if name != "epoch"}
        remove(kept.folder)
    store.save(fresh, workspace.outputs / "influence" / "policy")
    write_csv(workspace.outputs / "influence" / "epochs.csv", epochs or [{"epoch": 0}])
    workspace.metrics("influence", figures)
    return figures


def _kept(workspace: Workspace, domain: Domain, influence: Influence) -> Kept:
    """The folder of labels and checkpoints until the stage ends, named after everything that they depend on."""
    from ..trainers.influence import Kept

    inputs = [workspace.outputs / "data" / "domain", workspace.outputs / "pretrain" / domain.model]
    hashes = [content_hash(path) for path in [*inputs, *code_of("influence")]]
    key = digest([*hashes, domain.model_dump(mode="json"), influence.reference, influence.value])
    return Kept(workspace.root / ".checkpoints" / workspace.profile / f"influence-{key[:16]}", key)


def _fitted(
    policy: CoupledPolicy, source: Source, kept: Kept, influence: Influence, decode: Decode
) -> tuple[float, list[dict[str, float]]]:
    """Train the policy's shifts. Returns the bound of the probing's forwards, and the figures of every epoch."""
    from ..trainers.influence import Callbacks, Fit
    from ..trainers.influence import influence as run
    from ..trainers.probing import Probing, cost

    probing = Probing(
        chunks=influence.chunks,
        prompts=influence.prompts,
        states=influence.states,
        probes=influence.probes,
        on_policy_from=influence.on_policy_from,
        validation_share=influence.validation_share,
        block_length=decode.block_length,
        seed=influence.seed,
        frontier=decode.frontier,
    )
    plan = Fit(influence.num_epochs, influence.batch, influence.learning_rate, influence.seed)
    forwards = cost(source.prompts, probing)
    print(f"influence: at most {forwards:,.0f} forwards of single rows", flush=True)
    fits = 1 if influence.on_policy_from is None else 2
    epochs: list[dict[str, float]] = []
    with progress("influence", influence.chunks + influence.num_epochs * fits) as tick:

        def probed(states: int) -> None:
            tick(f"{states} states probed")

        def report(epoch: int, metrics: dict[str, float]) -> None:
            epochs.append({"epoch": epoch, **metrics})
            tick(f"unexplained {metrics['influence/held_unexplained']:.3f}")

        run(policy, source, (probing, plan), Callbacks(probed, report), kept)
    return float(forwards), epochs


def fresh_policy(policy: Policy, width: int, seed: int) -> LearnedPolicy:
    """A policy of the settings' shape over hidden states of this width; its weights depend on the seed alone."""
    import torch

    from ..core.rng import seed_of
    from ..policies.confidence import ConfidencePolicy, Shape
    from ..policies.coupled import CoupledPolicy, CoupledShape
    from ..policies.feature import FeaturePolicy, FeatureShape

    read = isinstance(policy, Feature) or policy.hidden_states
    chosen: dict[str, Any] = policy.model_dump(exclude={"kind", "hidden_states"}) | {"features": width if read else 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "policy"))
        if isinstance(policy, Feature):
            return FeaturePolicy(FeatureShape(**chosen))
        if isinstance(policy, Coupled):
            return CoupledPolicy(CoupledShape(**chosen))
        return ConfidencePolicy(Shape(**chosen))
