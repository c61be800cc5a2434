"""Is this class a denoiser that decodes what it means? Answered by the protocol alone, in sentences.

Most faults of a denoiser raise no error: causal attention, attention to padding, a row that depends on its batch,
logits that predict the neighbor. Each is provoked here on a few small canvases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import generator
from ..core.types import Canvas, RowState
from .protocol import Denoiser, attended, attention_layers

PROMPT, CANVAS = 3, 6
LIMIT = 1e30  # of a logit; the readout takes what is beyond for a fault
FIELDS = ("mask_id", "forbidden_ids", "vocabulary", "width", "stateless", "device")


def check_denoiser(denoiser: Denoiser, text: Tensor | None = None) -> list[str]:
    """What is wrong, a sentence each; an empty list where nothing is.

    Where it shows attention (``attention_layers``), that of its first and last layer is held to ``Attending``.

    text: the ids of a few ordinary sentences, at least 16 tokens, that the model should have learned to complete. With
    them the alignment is checked too: that row i predicts position i, not its neighbor.
    """
    problems = _attributes(denoiser)
    if problems:
        return problems
    try:
        problems = _Probe.of(denoiser).problems()
    except Exception as error:  # a user's class may raise anything
        return [f"a forward over a canvas of {CANVAS} masks raised {type(error).__name__}: {error}"]
    if not problems and text is not None:
        problems = _alignment(denoiser, text)
    return problems


def _attributes(denoiser: Denoiser) -> list[str]:
    missing = [name for name in (*FIELDS, "start", "hidden", "logits") if not hasattr(denoiser, name)]
    if missing:
        return [f"it has no {', '.join(missing)}, which the protocol names"]
    forbidden, size = denoiser.forbidden_ids, denoiser.vocabulary
    if not isinstance(forbidden, Tensor) or forbidden.dtype != torch.int64 or forbidden.ndim != 1:
        return ["forbidden_ids is no tensor of int64 with one axis"]
    if not 0 <= denoiser.mask_id < size:
        return [f"mask_id={denoiser.mask_id} is outside the vocabulary of {size}"]
    closed = set(forbidden.tolist())
    found = []
    if not closed <= set(range(size)):
        found.append(f"forbidden_ids go from {min(closed)} to {max(closed)}, outside the vocabulary of {size}")
    if denoiser.mask_id not in closed:
        found.append(f"forbidden_ids lack the mask, {denoiser.mask_id}: it could be committed and stay for ever")
    if len(closed) > size - 2:
        found.append(f"forbidden_ids leave {size - len(closed)} of {size} tokens to choose from")
    return found


@dataclass(frozen=True)
class _Probe:
    """Two rows of different tokens without padding, and ids that may be put into them."""

    denoiser: Denoiser
    canvas: Canvas
    free: list[int]

    @staticmethod
    def of(denoiser: Denoiser) -> _Probe:
        closed = set(denoiser.forbidden_ids.tolist())
        free = [i for i in range(denoiser.vocabulary) if i not in closed][:64]
        pick = torch.randint(len(free), (2, PROMPT + CANVAS), generator=generator("check", "denoiser"))
        ids_BT = torch.tensor(free)[pick].to(denoiser.device)
        ids_BT[:, PROMPT:] = denoiser.mask_id
        ids_BT[0, PROMPT + 2] = free[0]
        return _Probe(denoiser, _canvas(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), PROMPT), free)

    def problems(self) -> list[str]:
        """The first few faults; later checks mean nothing after an earlier one's."""
        found = self._shapes()
        found = found or self._numbers()
        return found or [*self._attention(), *self._rows()] or self._shown()

    def hidden(self, canvas: Canvas) -> Tensor:
        return self.denoiser.hidden(canvas, self.denoiser.start(canvas))[0]

    def _shapes(self) -> list[str]:
        before = self.canvas.ids_BT.clone()
        state = self.denoiser.start(self.canvas)
        if self.denoiser.stateless != (state is None):
            what = "no state" if state is None else "a state"
            return [f"stateless={self.denoiser.stateless}, but start() gives {what}"]
        hidden_BTD, following = self.denoiser.hidden(self.canvas, state)
        wanted = (*self.canvas.ids_BT.shape, self.denoiser.width)
        if tuple(hidden_BTD.shape) != wanted:
            return [f"hidden() gives {tuple(hidden_BTD.shape)} where (rows, sequence, width) is {wanted}"]
        found = _states(following, len(before))
        shapes = {n: tuple(self.denoiser.logits(hidden_BTD.flatten(0, 1)[:n]).shape) for n in (0, 1, 5)}
        wrong = {n: shape for n, shape in shapes.items() if shape != (n, self.denoiser.vocabulary)}
        for count, shape in list(wrong.items())[:1]:
            found.append(f"logits() gives {shape} for {count} positions of {self.denoiser.vocabulary} tokens")
        if not torch.equal(before, self.canvas.ids_BT):
            found.append("hidden() changes the canvas it is given")
        return found

    def _numbers(self) -> list[str]:
        hidden_BTD = self.hidden(self.canvas)
        logits_BTV = self.denoiser.logits(hidden_BTD.flatten(0, 1)).float()
        logits_BTV = logits_BTV.index_fill(-1, self.denoiser.forbidden_ids, -torch.inf)
        if not bool(hidden_BTD.isfinite().all()):
            return ["hidden states are NaN or infinite"]
        if bool(logits_BTV.isnan().any()) or not bool((logits_BTV.amax(-1).abs() < LIMIT).all()):
            return ["logits are NaN or infinite, or every token of a position is ruled out"]
        return []

    def _attention(self) -> list[str]:
        """Whether a canvas position depends on tokens before and behind it."""
        plain_TD = self.hidden(self.canvas)[0]
        changed = {"last": len(plain_TD) - 1, "first": 0}
        moved: dict[str, Tensor] = {}
        for name, column in changed.items():
            rows = [self.canvas.ids_BT[:1].clone() for _ in self.free[:4]]
            for ids_1T, token in zip(rows, self.free, strict=False):
                ids_1T[0, column] = token
            ids_BT = torch.cat(rows)
            out_BTD = self.hidden(_canvas(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), PROMPT))
            # Among themselves: they were computed in one batch.
            moved[name] = (out_BTD != out_BTD[:1]).any(-1).any(0)
        if not (moved["last"] | moved["first"]).any():
            return ["hidden states do not depend on the tokens: they are constant, maybe zero"]
        if not moved["last"][PROMPT]:
            return [
                "the canvas' first position ignores the last token: it attends causally, and a dLLM must see the whole "
                "canvas"
            ]
        if not moved["first"][-1]:
            return ["the last position ignores the first token: attention does not reach the whole sequence"]
        return []

    def _rows(self) -> list[str]:
        """Whether a row is the same twice, alone, and behind padding of any width and content."""
        plain_BTD = self.hidden(self.canvas)
        if not _close(self.hidden(self.canvas), plain_BTD):
            return ["the same canvas gives other hidden states the second time"]
        found = []
        if not _close(self.hidden(self.canvas.rows(torch.tensor([1]).to(self.denoiser.device))), plain_BTD[1:]):
            found.append("a row alone gives other hidden states than in a batch")
        padded = [self._padded(token) for token in (self.denoiser.mask_id, self.free[0], self.free[-1])]
        if not all(_close(one, padded[0]) for one in padded[1:]):
            found.append("hidden states depend on what padding holds: attention reaches it")
        elif not _close(padded[0], plain_BTD):
            found.append("hidden states depend on how much padding stands before the row: positions count it")
        return found

    def _padded(self, token: int) -> Tensor:
        return self.hidden(self._behind_padding(token))[:, 2:]

    def _behind_padding(self, token: int) -> Canvas:
        ids_BT = F.pad(self.canvas.ids_BT, (2, 0), value=token)
        return _canvas(ids_BT, F.pad(self.canvas.attend_BT, (2, 0), value=False), PROMPT + 2)

    def _shown(self) -> list[str]:
        """Whether the attention that it shows is a softmax's, of this canvas, and the same behind padding."""
        layers = attention_layers(self.denoiser)
        if not layers:
            return []
        if not hasattr(self.denoiser, "attended"):
            return [f"attention_layers={layers}, but there is no attended()"]
        hidden_BTD, attention_BLLA, _ = attended(self.denoiser, self.canvas, None, (0, -1))
        wanted = (len(hidden_BTD), CANVAS, CANVAS, 2)
        if attention_BLLA is None or tuple(attention_BLLA.shape) != wanted:
            shape = None if attention_BLLA is None else tuple(attention_BLLA.shape)
            return [f"attended() gives attention {shape} where (rows, canvas, canvas, layers) is {wanted}"]
        most = float(attention_BLLA.sum(2).max())
        if not bool((attention_BLLA >= 0).all()) or not most <= 1.01:
            return [f"attention is no softmax's: below 0, NaN, or a row's sum over the canvas of {most:.3g}"]
        if torch.equal(attention_BLLA[0], attention_BLLA[1]):
            return ["attention does not depend on the tokens: two different rows have the same"]
        if not _close(hidden_BTD, self.hidden(self.canvas)):
            return ["attended() gives other hidden states than hidden()"]
        padded_BLLA = attended(self.denoiser, self._behind_padding(self.free[0]), None, (0, -1))[1]
        if padded_BLLA is None or not _close(padded_BLLA, attention_BLLA):
            return ["attention depends on the padding before the row"]
        return []


def _states(state: RowState | None, rows: int) -> list[str]:
    wrong = [name for name, t in (state or {}).items() if len(t) != rows]
    return [f"the state's {', '.join(wrong)} have no leading axis of {rows} rows"] if wrong else []


def _canvas(ids_BT: Tensor, attend_BT: Tensor, start: int) -> Canvas:
    """A denoiser with a cache is told that the whole canvas is the current block."""
    block_BT = torch.zeros_like(attend_BT)
    block_BT[:, start:] = True
    return Canvas(ids_BT, attend_BT, start, block_BT)


def _close(one: Tensor, other: Tensor) -> bool:
    limit = {torch.float64: 1e-6, torch.float32: 1e-3}.get(one.dtype, 5e-2)
    return bool((one - other).abs().max() <= limit * (1 + other.abs().max()))


def _alignment(denoiser: Denoiser, text: Tensor) -> list[str]:
    """Whether masked tokens of a text are predicted at their own row and not at a neighbor's."""
    if len(text) < 16:
        return []
    ids_T = text.to(denoiser.device)
    column_N = torch.arange(2, len(ids_T) - 1, 4, device=ids_T.device)
    canvas = ids_T.index_fill(0, column_N, denoiser.mask_id).unsqueeze(0)
    shown = _canvas(canvas, torch.ones_like(canvas, dtype=torch.bool), 0)
    hidden_TD = denoiser.hidden(shown, denoiser.start(shown))[0][0]

    def surprise(offset: int) -> float:
        logits_NV = denoiser.logits(hidden_TD[column_N + offset]).float()
        return float(F.cross_entropy(logits_NV, ids_T[column_N]))

    own, before, behind = (surprise(offset) for offset in (0, -1, 1))
    chance = float(torch.tensor(float(denoiser.vocabulary)).log())
    best = min(before, behind)
    # An untrained model predicts nothing at any row; one that was trained and is misread does at another row alone.
    if best < 0.5 * chance and own > max(2 * best, 0.5 * chance):
        where = "before" if before < behind else "behind"
        return [
            f"a text's tokens are predicted at the row {where} their own ({best:.1f} nats there, {own:.1f} at their "
            f"own): the logits are shifted by one"
        ]
    return []
