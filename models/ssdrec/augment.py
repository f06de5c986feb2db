"""SSDRec's self-augmentation: inserts two items of the catalogue at the most inconsistent place of a history.

Choices are hard, drawn by row key, and have straight-through gradients. This needs no (B, I) matrix in memory: the
forward value of a hard Gumbel softmax is a draw from the softmax, so one uniform number per row draws an item, and the
rows are processed in slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.nn.layout import kept_first
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32

# bytes of probabilities in one slice of rows
_SLICE_BYTES_CPU = 1 << 24
_SLICE_BYTES_GPU = 1 << 30


class BiLSTM(nn.Module):
    """Bidirectional LSTM over right-padded rows; neither direction reads padding before a real token."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.ahead = nn.LSTM(width, hidden, bias=bias, batch_first=True)
        self.back = nn.LSTM(width, hidden, bias=bias, batch_first=True)
        for name, parameter in self.named_parameters():
            if "weight" in name:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x_BLD: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D), lengths of 1 or more -> states at every place of the left-to-right and the right-to-left LSTM."""
        # always float32: oneDNN has no LSTM in bfloat16 on most CPUs
        with torch.autocast(x_BLD.device.type, enabled=False):
            x_BLD = at_least_float32(x_BLD)
            ahead = _run(self.ahead, x_BLD, length_B)
            return ahead, reversed_rows(_run(self.back, reversed_rows(x_BLD, length_B), length_B), length_B)


def _run(lstm: nn.LSTM, x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """(B, L, D) states. A CPU computes real tokens alone; a GPU computes all, so that the host need not wait, and so
    does an exported program, which has no shapes that data decide."""
    whole = x_BLD.is_cuda or torch.compiler.is_exporting()
    return _padded(lstm, x_BLD, length_B) if whole else _packed(lstm, x_BLD, length_B)


def _packed(lstm: nn.LSTM, x_BLD: Tensor, length_B: Tensor) -> Tensor:
    packed = pack_padded_sequence(x_BLD, length_B, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x_BLD.shape[1])[0]


def _padded(lstm: nn.LSTM, x_BLD: Tensor, length_B: Tensor) -> Tensor:
    del length_B
    states: Tensor = lstm(x_BLD)[0]
    return states


def reversed_rows(x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """The real places of each row in reverse order; padding stays where it is."""
    place = torch.arange(x_BLD.shape[1], device=length_B.device)
    source_BL = torch.where(place < length_B[:, None], length_B[:, None] - 1 - place, place)
    return x_BLD.gather(1, source_BL[:, :, None].expand_as(x_BLD))


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())


@dataclass(frozen=True)
class Augmented:
    """Right-padded rows after augmentation. item: (B, L) item rows. vector: (B, L, D) vectors of the relation encoder.

    weight: (B, L), 1 for items; it carries the gradients of the choices of inserted items. length: (B,).
    """

    item: Tensor
    vector: Tensor
    weight: Tensor
    length: Tensor

    def compacted(self, keep_BL: Tensor) -> Augmented:
        """The rows with only the places of `keep_BL`, moved to the left."""
        order_BL, length_B = kept_first(keep_BL), keep_BL.sum(dim=1)
        real_BL = torch.arange(keep_BL.shape[1], device=length_B.device) < length_B[:, None]
        vector = self.vector.gather(1, order_BL[:, :, None].expand_as(self.vector)) * real_BL[:, :, None]
        weight = self.weight.gather(1, order_BL) * real_BL
        return Augmented(self.item.gather(1, order_BL) * real_BL, vector, weight, length_B)


class SelfAugmentation(nn.Module):
    """Chooses the most inconsistent place of a row, inserts an item before it and one after it, and may then drop one
    of the three items again."""

    def __init__(self, hidden: int, noise: KeyedNoise) -> None:
        super().__init__()
        self.ends = nn.Embedding(2, hidden)
        self.lstm = BiLSTM(hidden, hidden, bias=False)
        self.noise = noise

    def forward(self, rows: Augmented, item_ID: Tensor, key_B: Tensor, tau: float) -> Augmented:
        """`rows` with up to two more items; a row without room for two is unchanged. item_ID: relation encoder's."""
        first, second = self.noise.gumbel(key_B, (2, rows.item.shape[1]), Stream.AUGMENTATION).unbind(1)
        noise_BL, ahead, back = self.inconsistency(rows.vector, rows.length)
        place_B, chosen_B = _choose(noise_BL, first, tau)
        # padding can be chosen too, as released: a row with more padding is augmented less often
        grows_B = (place_B < rows.length) & (rows.length <= rows.item.shape[1] - 2)
        at_B11 = place_B.view(-1, 1, 1).expand(-1, 1, ahead.shape[2])
        queries_2BD = torch.stack([ahead.gather(1, at_B11), back.gather(1, at_B11)]).squeeze(2)
        uniform_2B = (-(-self.noise.gumbel(key_B, (2,), Stream.INSERTION)).exp()).exp().T
        item_2B, one_2B = zip(
            *(draw_item(query, item_ID, u) for query, u in zip(queries_2BD, uniform_2B, strict=True)), strict=True
        )
        grown = _insert(rows, place_B, grows_B, item_2B, [chosen_B * one_B for one_B in one_2B], item_ID)
        with torch.no_grad():  # this choice has no gradient, as released
            again_B, _ = _choose(self.inconsistency(grown.vector, grown.length)[0], second, tau)
        dropped_B = grows_B & (again_B >= place_B) & (again_B <= place_B + 2)
        position = torch.arange(rows.item.shape[1], device=place_B.device)
        keep_BL = (position < grown.length[:, None]) & ~(dropped_B[:, None] & (position == again_B[:, None]))
        return grown.compacted(keep_BL)

    def inconsistency(self, x_BLD: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) scores in 0..1, and (B, L, D) LSTM states of the items to the left and to the right of each place.

        A score is 1 minus the product of two softmaxes over the row. One is over sum_d x * left * right, the other over
        the similarity with all other items, with vectors cut to -1..1 per element. Padding has score 1.
        """
        ahead, back = self.lstm(self._with_ends(x_BLD, length_B), length_B + 2)
        ahead, back = ahead[:, :-2], back[:, 2:]
        real_BL = torch.arange(x_BLD.shape[1], device=length_B.device) < length_B[:, None]
        with torch.autocast(x_BLD.device.type, enabled=False):
            x_BLD = x_BLD.to(ahead.dtype)
            sequence_BL = (x_BLD * ahead * back).sum(dim=2)
            cut_BLD = x_BLD.clamp(-1, 1) * real_BL[:, :, None]
            item_BL = (cut_BLD * (cut_BLD.sum(dim=1, keepdim=True) - cut_BLD)).sum(dim=2)
            lowest = torch.finfo(item_BL.dtype).min
            by_sequence, by_item = (s.masked_fill(~real_BL, lowest).softmax(dim=1) for s in (sequence_BL, item_BL))
        return 1 - by_sequence * by_item, ahead, back

    def _with_ends(self, x_BLD: Tensor, length_B: Tensor) -> Tensor:
        """(B, L + 2, D): the start vector, the items of the row, and the end vector right after the last item."""
        start, end = self.ends(torch.arange(2, device=length_B.device)).to(x_BLD.dtype)
        place = torch.arange(x_BLD.shape[1] + 2, device=length_B.device)
        x = torch.cat([start.expand(len(x_BLD), 1, -1), x_BLD, torch.zeros_like(x_BLD[:, :1])], dim=1)
        return torch.where((place == length_B[:, None] + 1)[:, :, None], end, x)


def _choose(score_BL: Tensor, gumbel_BL: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(B,) place drawn from softmax(score), and ones with the gradient of its Gumbel softmax, at `tau`."""
    noisy_BL = score_BL + gumbel_BL.to(score_BL.dtype)
    place_B = noisy_BL.argmax(dim=1)
    soft_B = (noisy_BL / tau).softmax(dim=1).gather(1, place_B[:, None]).squeeze(1)
    return place_B, straight_through(torch.ones_like(soft_B), soft_B)


def draw_item(query_BD: Tensor, item_ID: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) items drawn from softmax(query . item) over rows 1..I-1, and ones with a gradient for the item's logit.

    The gradient is p (1 - p) times that of the chosen item's logit. The expected straight-through gradient of the
    chosen item tends to this value when its temperature goes to 0. uniform_B: (B,) in 0..1, determines the draw.
    """
    with torch.autocast(query_BD.device.type, enabled=False):
        item_ID = item_ID.to(query_BD.dtype)
        chosen_B, p_B = _sample(query_BD.detach(), item_ID.detach(), uniform_B)
        logit_B = (query_BD * item_ID[chosen_B]).sum(dim=1)
        return chosen_B, straight_through(torch.ones_like(logit_B), p_B * (1 - p_B) * logit_B)


@torch.no_grad()
def _sample(query_BD: Tensor, item_ID: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    budget = _SLICE_BYTES_GPU if query_BD.is_cuda else _SLICE_BYTES_CPU
    rows, chosen, likely = max(1, budget // (len(item_ID) * 4)), [], []
    for query, uniform in zip(torch.split(query_BD, rows), torch.split(uniform_B, rows), strict=True):
        p = (query @ item_ID[1:].T).softmax(dim=1)
        below = p.cumsum(dim=1)
        at = torch.searchsorted(below, uniform[:, None].to(p.dtype) * below[:, -1:], right=True)
        at = at.clamp(max=p.shape[1] - 1)  # the cumulative sum may be rounded down
        chosen.append(at.squeeze(1) + 1)
        likely.append(p.gather(1, at).squeeze(1))
    return torch.cat(chosen), torch.cat(likely)


def _insert(
    rows: Augmented, place_B: Tensor, grows_B: Tensor, item_2B: tuple[Tensor, ...], weight_2B: list[Tensor],
    item_ID: Tensor,
) -> Augmented:  # fmt: skip
    """Insert one item right before place_B and one right after it, in the rows where grows_B is True."""
    position, place = torch.arange(rows.item.shape[1], device=place_B.device), place_B[:, None]
    source_BL = position - (position > place).long() - (position > place + 1).long()
    source_BL = torch.where(grows_B[:, None], source_BL, position)
    item = rows.item.gather(1, source_BL)
    vector = rows.vector.gather(1, source_BL[:, :, None].expand_as(rows.vector))
    weight = rows.weight.gather(1, source_BL)
    for offset, new, share in zip((0, 2), item_2B, weight_2B, strict=True):
        here = grows_B[:, None] & (position == place + offset)
        item = torch.where(here, new[:, None], item)
        added = (item_ID[new] * share[:, None]).to(vector.dtype)
        vector = torch.where(here[:, :, None], added[:, None], vector)
        weight = torch.where(here, share[:, None].to(weight.dtype), weight)
    return Augmented(item, vector, weight, rows.length + 2 * grows_B)
