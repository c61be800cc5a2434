"""Checks between sections: which policies can learn from which references, and by which training.

Each check raises ValueError before anything runs. Without it a run would end in an infinite loss, a KL between
different kinds of draws, or a setting without effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..policies.rules import RULES
from .data import Data, Model
from .policy import Confidence, Coupled, Decode, Feature
from .training import Distill, Train

Head = Confidence | Coupled | Feature

EXACT_LIMIT = 12  # of components.maths.plackett_luce, which needs torch
COUPLED_LIMIT = 6  # of components.maths.coupled


def check_learning(policy: Head, decode: Decode, distill: Distill, train: Train, length: int) -> None:
    """length: of the longest canvas of the domain."""
    _test_time(policy, decode)
    _drawable("distill.reference", policy, distill.reference, distill.value)
    _speeds(policy, decode, train)
    if train.divergence != "none":
        # Steered rows are recorded with every mask eligible, whatever the block.
        _reference(policy, train, length if train.experts else min(_eligible(decode) or length, length))
    if train.objective == "upo" and policy.action != "categorical":
        raise ValueError(
            f"train.objective=upo with policy.action={policy.action}: paper B draws one position per step. "
            f"Use policy.kind: feature, or action: categorical."
        )


def check_shares(weights: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Refuse a task of the domain without a prompt in a split. weights: the tasks' shares."""
    total = sum(weights.values())
    for split, count in counts.items():
        for name, weight in weights.items():
            if count * weight < total:
                raise ValueError(
                    f"domain.tasks.{name}={weight} of {total} is no prompt of the {count} in data.counts.{split}. "
                    f"Raise the weight, or remove the task."
                )


def check_letters(data: Data, models: Mapping[str, Model], decoded: Iterable[tuple[str, str]]) -> None:
    """Refuse a task with letters that the embedded dLLM is not trained on. decoded: (dLLM, task) of every case."""
    for which, name in sorted(decoded):
        model = models[which]
        if model.source != "embedded" or data.tasks[name].params.get("execute"):
            continue
        known = {letter for trained in model.rows for letter in data.tasks[trained].build().alphabet}
        unknown = sorted(set(data.tasks[name].build().alphabet) - known)
        if unknown:
            raise ValueError(
                f"task {name} over dLLM {which} needs letters {''.join(unknown)!r}, and no task of models.{which}.rows "
                f"has them. Add {name} there, or use another task."
            )


def check_attention(policy: Head, decode: Decode, layers: int | None, rules: Mapping[str, Iterable[str]]) -> None:
    """What reads attention finds it: the dLLM has the layers, and decodes without a cache, which shows none.

    layers: of the domain's dLLM; None where only its files say it. rules: the setting that names them -> rules.
    """
    read = policy.attention if isinstance(policy, Coupled) and policy.pair_shifts else ()
    if layers is not None and (beyond := [layer for layer in read if not -layers <= layer < layers]):
        raise ValueError(
            f"policy.attention={list(read)}: the dLLM has {layers} layers. Use {-layers} to {layers - 1}, not "
            f"{beyond[0]}."
        )
    readers = {name: where for where, names in rules.items() for name in names if name in RULES and RULES[name].attends}
    if decode.cache != "none" and (read or readers):
        where = "policy.attention" if read else f"{next(iter(readers.values()))}={next(iter(readers))}"
        raise ValueError(
            f"decode.cache={decode.cache} with {where}, which reads attention, is impossible: a cache shows none. Use "
            f"cache: none, or leave that out."
        )


def _eligible(decode: Decode) -> int | None:
    """How many positions may be chosen at once; None: as many as the canvas has."""
    return min((n for n in (decode.block_length, decode.frontier) if n is not None), default=None)


def _test_time(policy: Head, decode: Decode) -> None:
    most = _eligible(decode)
    if most is not None and policy.shortlist > most:
        raise ValueError(
            f"policy.shortlist={policy.shortlist} is larger than decode.block_length={decode.block_length} or "
            f"decode.frontier={decode.frontier}. Use less than {most}, or 0."
        )
    if decode.scale != 1 and policy.action != "bernoulli":
        raise ValueError(
            f"decode.scale={decode.scale} with policy.action={policy.action}: only a bernoulli action has a scale. "
            f"Write 1.0."
        )


def _drawable(where: str, policy: Head, rule: str, value: float | None) -> None:
    """Refuse a rule whose commits a policy of one position, or of a shortlist, cannot draw."""
    if policy.action != "categorical":
        return
    commits = RULES[rule].commits
    if commits == "several" or (commits == "fixed" and value is not None and value > 1):
        raise ValueError(
            f"{where}={rule} ({value}) commits several positions in a step, the policy draws one. "
            f"Use a rule of one position, or an action of several."
        )
    listed = {"confidence": 1.0, "top_k_random": value}.get(rule)
    if policy.shortlist and (listed is None or listed > policy.shortlist):
        raise ValueError(
            f"{where}={rule} ({value}) commits positions outside policy.shortlist={policy.shortlist}. "
            f"Use top_k_random of no more, or shortlist: 0."
        )


def _reference(policy: Head, train: Train, eligible: int) -> None:
    """Refuse a reference over other draws than the policy's, or one that gives a draw of the policy no probability."""
    rule, value = train.reference, train.reference_value
    if rule == "distilled":
        exact = train.kl_coef > 0 or train.divergence == "ce"
        if policy.action == "dpls" and exact and eligible > EXACT_LIMIT:
            raise ValueError(
                f"train.kl_coef={train.kl_coef} ({train.divergence}) of dpls over {eligible} open positions: "
                f"the exact divergence has 2^{eligible} terms. Use {'experts: 0, ' * (train.experts > 0)}blocks of at "
                f"most {EXACT_LIMIT}, kl_coef: 0.0 with kl, or divergence: none."
            )
        # Its KL is estimated from what the policy itself draws (components.maths.divergence); this is a sum over what
        # the reference may draw.
        if policy.action == "coupled" and train.divergence == "ce" and eligible > COUPLED_LIMIT:
            raise ValueError(
                f"train.divergence=ce to a coupled policy over {eligible} open positions has too many orders to add "
                f"up. Use kl, or blocks of at most {COUPLED_LIMIT}."
            )
    elif rule == "random":
        raise ValueError(
            "train.reference=random: no divergence from its ordered draws is implemented. "
            "Use top_k_random with a number as large as the canvas."
        )
    elif RULES[rule].commits == "one" and policy.action != "categorical":
        raise ValueError(
            f"train.reference={rule} draws one position, policy.action={policy.action} draws sets. "
            f"Use action: categorical, or another reference."
        )
    elif RULES[rule].commits == "one" and train.divergence == "kl":
        listed = {"top_k_random": value, "max_confidence": 0.0}.get(rule)
        if listed is not None and not 0 < policy.shortlist <= listed:
            raise ValueError(
                f"train.divergence=kl to {rule} ({value}) with policy.shortlist={policy.shortlist} is infinite: the "
                f"policy may draw more positions. Use ce, or top_k_random with a shortlist of no more."
            )
    else:
        _drawable("train.reference", policy, rule, value)


def _speeds(policy: Head, decode: Decode, train: Train) -> None:
    """Refuse a decode.alpha outside the range that the policy is trained for, and any for a policy of one alpha."""
    alphas = train.alphas
    if not alphas and decode.alpha is not None:
        raise ValueError(
            f"decode.alpha={decode.alpha} of a policy trained for one alpha ({train.alpha}). "
            f"Write null, or give train.alpha a list."
        )
    if alphas and policy.action == "categorical":
        raise ValueError(
            f"train.alpha={list(alphas)} of a policy that draws one position per step: it has no speed to choose. "
            f"Give one number, or an action that draws several."
        )
    if alphas and (decode.alpha is None or not min(alphas) <= decode.alpha <= max(alphas)):
        raise ValueError(
            f"decode.alpha={decode.alpha} is outside train.alpha={list(alphas)}. "
            f"Use {min(alphas):g} to {max(alphas):g}."
        )
