"""Stage distill: the policy imitates a reference, a heuristic or the teacher, by exact likelihood."""

from __future__ import annotations

from ..settings import Decode, Distill, Domain
from .common.progress import progress
from .common.workspace import Workspace


def distill(workspace: Workspace, domain: Domain, decode: Decode, distill: Distill) -> dict[str, float]:
    """P/distill/policy; metrics: the imitation loss, and accuracy and NFE of rule and student on the tune split."""
    from ..evaluation.evaluate import Candidate, evaluate
    from ..policies import store
    from ..trainers.distill import DistillPlan, imitate
    from .common.models import domain_prompts, open_cached, reference_of

    denoiser, encoder = open_cached(workspace, domain.model, decode)
    student = store.load(workspace.outputs / "influence" / "policy").to(denoiser.device)
    reference = reference_of(distill.reference, distill.value)
    train = domain_prompts(workspace, domain, encoder, ["train"])
    plan = DistillPlan(
        distill.iterations,
        distill.prompts,
        distill.micro_batch,
        distill.learning_rate,
        decode.block_length,
        distill.seed,
        decode.frontier,
    )
    losses: list[float] = []
    with progress("distill", distill.iterations) as tick:

        def report(number: int, metrics: dict[str, float]) -> None:
            losses.append(metrics["distill/loss"])
            tick(f"loss {losses[-1]:.4f}")

        imitate(student, reference, denoiser, train, plan, report)
    store.save(student, workspace.outputs / "distill" / "policy")
    figures = {"loss": losses[-1], "parameters": float(sum(p.numel() for p in student.parameters()))}
    tune = domain_prompts(workspace, domain, encoder, ["tune"])
    # The imitation is of the reference's draws, not of its mode; a deterministic rule draws its mode.
    for name, who, choose in (("reference", reference, "sample"), ("student", student, "mode")):
        candidate = Candidate("distilled", "", who, decode.block_length, choose, decode.frontier)
        result = evaluate(denoiser, candidate, tune, [distill.seed])
        figures |= {f"{name}.accuracy": result.accuracy, f"{name}.nfe": result.nfe}
    workspace.metrics("distill", figures)
    return figures
