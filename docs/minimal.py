"""The whole idea in one file: learn *which* masked positions to commit next. Needs torch alone: python docs/minimal.py

A masked diffusion language model (dLLM) starts from a canvas of masks and predicts every position at once. Committing
one position per step is safe and slow. Committing many is fast, but two positions that depend on each other may then
clash: each was right alone, both together are wrong. Confidence cannot see which uncertainty is harmless. A small
policy can learn it from a reward, while the dLLM stays frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (masked, log-odds) -> (score, chance to be committed)

# Axis letters: B rows (b: unfinished ones) = P prompts x G members, L positions, V tokens, N (row, step) pairs.
L, V, MASK = 12, 4, -1
PROMPTS, GROUP, ITERATIONS = 32, 8, 150  # per iteration: 32 prompts, each decoded 8 times
ALPHA, CLIP, EPOCHS = 2.0, 0.3, 2

# Positions 0 to 7 are tied in pairs that must differ, as two cells of a sudoku row must. 8 to 11 are free: every token
# is right there, so that their uncertainty is harmless. The pairs are shuffled; nobody tells them to the policy.
PAIRS = torch.randperm(8, generator=torch.Generator().manual_seed(3)).view(4, 2)
PARTNER = torch.full((L,), -1)
PARTNER[PAIRS] = PAIRS.flip(1)
TIED = PARTNER >= 0


def draw_prompts(count: int, seed: int) -> Tensor:
    """(count, L, V) A prompt is a preference for tokens at each position. Tied positions like much the same tokens."""
    own_BLV = torch.rand(count, L, V, generator=torch.Generator().manual_seed(seed))
    shared_BLV = torch.where(TIED[:, None], own_BLV[:, torch.minimum(PARTNER, torch.arange(L))], own_BLV)
    return (0.2 * own_BLV + 0.8 * shared_BLV) ** 3 + 1e-3


def denoise(prompt_BLV: Tensor, canvas_BL: Tensor) -> Tensor:
    """(B, L, V) The frozen dLLM: exact marginals given the canvas. What goes wrong below is the order's fault alone."""
    other_BLV, token_BL = prompt_BLV[:, PARTNER], canvas_BL[:, PARTNER]  # the partner's preferences and token
    excluded_BLV = nn.functional.one_hot(token_BL.clamp(min=0), V).bool() & (token_BL != MASK).unsqueeze(-1)
    open_BLV = prompt_BLV * (other_BLV.sum(-1, keepdim=True) - other_BLV)  # partner masked: summed over its tokens
    known_BLV = prompt_BLV.masked_fill(excluded_BLV, 0.0)  # partner committed: its token is excluded
    tied_BLV = torch.where((token_BL == MASK).unsqueeze(-1), open_BLV, known_BLV)
    weight_BLV = torch.where(TIED[:, None], tied_BLV, prompt_BLV)
    return weight_BLV / weight_BLV.sum(-1, keepdim=True)


def correct(canvas_BL: Tensor) -> Tensor:
    """(B,) 1.0 where all tied positions differ."""
    return (canvas_BL != canvas_BL[:, PARTNER])[:, TIED].all(-1).float()


def reward(canvas_BL: Tensor, nfe_B: Tensor) -> Tensor:
    """(B,) correct x speed^alpha. NFE: number of function evaluations, that is forward passes of the dLLM."""
    return correct(canvas_BL) * ((1 - (nfe_B - 1) / L) ** ALPHA)


class BernoulliPolicy(nn.Module):
    """Which masked positions to commit: one independent coin per position, from confidences and the mask."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Linear(64, L)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -1.0)  # at first: about a quarter of the positions, whichever they are
        self.net = nn.Sequential(nn.Linear(2 * L, 64), nn.ReLU(), last)

    def forward(self, masked_BL: Tensor, log_odds_BL: Tensor) -> Tensor:
        return self.net(torch.cat([masked_BL.float(), log_odds_BL], -1))


def log_prob(logits_NL: Tensor, drawn_NL: Tensor, masked_NL: Tensor) -> Tensor:
    """(N,) Log-likelihood of the drawn bits. Positions that are committed already are not drawn."""
    bits_NL = -nn.functional.binary_cross_entropy_with_logits(logits_NL, drawn_NL.float(), reduction="none")
    return (bits_NL * masked_NL).sum(-1)


def decode(prompt_BLV: Tensor, choose: Choose, generator: torch.Generator) -> tuple[Tensor, Tensor, list[tuple]]:
    """Fill the canvases: predict, choose positions, commit the likeliest tokens there, until nothing is masked.

    Returns the canvases, their NFE, and per step (rows, masked, log_odds, drawn) of the unfinished rows.
    """
    canvas_BL, nfe_B, record = torch.full(prompt_BLV.shape[:2], MASK), torch.zeros(len(prompt_BLV)), []
    while (canvas_BL == MASK).any():
        row_b = (canvas_BL == MASK).any(-1).nonzero().squeeze(-1)  # finished rows leave the batch
        masked_bL = canvas_BL[row_b] == MASK
        confidence_bL, token_bL = denoise(prompt_BLV[row_b], canvas_BL[row_b]).max(-1)
        log_odds_bL = confidence_bL.logit(eps=1e-4) * masked_bL  # not saturated near 1, unlike the confidence
        score_bL, chance_bL = choose(masked_bL, log_odds_bL)
        drawn_bL = (torch.rand(masked_bL.shape, generator=generator) < chance_bL) & masked_bL
        # An empty draw commits the best position, so that every step makes progress. Its likelihood stays that of
        # the empty draw: a forced commit is never credited as a drawn one.
        best_bL = nn.functional.one_hot(score_bL.masked_fill(~masked_bL, -torch.inf).argmax(-1), L).bool()
        commit_bL = torch.where(drawn_bL.any(-1, keepdim=True), drawn_bL, best_bL)
        canvas_BL[row_b] = torch.where(commit_bL, token_bL, canvas_BL[row_b])
        nfe_B[row_b] += 1
        record.append((row_b, masked_bL, log_odds_bL, drawn_bL))
    return canvas_BL, nfe_B, record


def threshold(value: float) -> Choose:
    """The usual heuristic: commit every position whose confidence reaches the threshold."""
    return lambda masked_BL, log_odds_BL: (log_odds_BL, (log_odds_BL.sigmoid() >= value).float())


@torch.no_grad()
def choose_by(policy: BernoulliPolicy, sample: bool, masked_BL: Tensor, log_odds_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and chances of the policy: its coins in training, the likelier side of each coin in evaluation."""
    logits_BL = policy(masked_BL, log_odds_BL)
    return logits_BL, logits_BL.sigmoid() if sample else (logits_BL > 0).float()


def train(policy: BernoulliPolicy, iterations: int) -> None:
    """GRPO: decode groups, compare each decode with its group's mean, make what was better likelier."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for number in range(iterations):
        prompt_BLV = draw_prompts(PROMPTS, 1000 + number).repeat_interleave(GROUP, 0)
        canvas_BL, nfe_B, record = decode(prompt_BLV, partial(choose_by, policy, True), generator)
        reward_PG = reward(canvas_BL, nfe_B).view(PROMPTS, GROUP)
        advantage_B = (reward_PG - reward_PG.mean(1, keepdim=True)).flatten()  # not divided by the deviation
        row_N, masked_NL, log_odds_NL, drawn_NL = (torch.cat(column) for column in zip(*record, strict=True))
        old_N, advantage_N = log_prob(policy(masked_NL, log_odds_NL), drawn_NL, masked_NL).detach(), advantage_B[row_N]
        for _ in range(EPOCHS):  # the first has ratio 1; clipping keeps the next ones close
            ratio_N = (log_prob(policy(masked_NL, log_odds_NL), drawn_NL, masked_NL) - old_N).exp()
            clipped_N = ratio_N.clamp(1 - CLIP, 1 + CLIP)
            surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
            optimizer.zero_grad()
            (-surrogate_N.sum() / len(advantage_B) / L).backward()
            optimizer.step()


def show(name: str, choose: Choose) -> None:
    """Print reward, accuracy and NFE on prompts that training never draws."""
    canvas_BL, nfe_B, _ = decode(draw_prompts(1000, seed=1), choose, torch.Generator().manual_seed(1))
    reward_B, correct_B = reward(canvas_BL, nfe_B), correct(canvas_BL)
    print(f"{name:<22} reward {reward_B.mean():.3f}   accuracy {correct_B.mean():.3f}   NFE {nfe_B.mean():.2f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    show("one position per step", threshold(2.0))
    for value in (0.9, 0.7, 0.5, 0.4, 0.3):
        show(f"threshold {value}", threshold(value))
    policy = BernoulliPolicy()
    show("policy before", partial(choose_by, policy, False))
    train(policy, ITERATIONS)
    show("policy after", partial(choose_by, policy, False))
