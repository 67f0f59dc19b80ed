"""The grid-order student: the prior's own layers, emitting many slots at a time in the order of models/grid_order.py.

It sees what its teacher would see, as far as it is there. It starts from its teacher's weights. Two small tables are
new, and start as zeros: what the token one row up says (the teacher reads only the one before), and that the token
before is not there yet. So at the teacher's order a student is its teacher to the last bit.
"""

# B windows   N slots of them   T slots of a window   R rows   W width   V vocabulary   K soft targets
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from megajukebox.models.grid_order import GridOrder, GridVisibility, times
from megajukebox.models.prior import Conditioning, Prior, PriorConfig
from megajukebox.models.transformer import Table

LOG_2 = 0.6931471805599453
HARD_WEIGHT = (
    0.1  # of single codes, a target only where something later is known; all else are distributions
)
NEW = ("above.weight", "missing.weight")  # what a student has and its teacher has not


class StudentConfig(BaseModel):
    """A prior with an order, and how it is taught."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior: PriorConfig
    order: GridOrder
    known_before: float = Field(
        default=0.5, ge=0, le=1, description="share of training windows whose first rows are known"
    )
    known_after: float = Field(
        default=0.25, ge=0, le=1, description="share whose last rows are known"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_looked_forward(cls, given: Any) -> Any:
        if isinstance(given, dict) and {"causal", "soft_weight"} & given.keys():
            raise ValueError(
                "this student is of an older version, which saw what comes later; distil it again"
            )
        return given

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        GridOrder.parse(str(self.order)).steps(self.prior.window, self.prior.transformer.blocks)
        if self.prior.prefix_tokens:
            raise ValueError(
                "a prior that reads its lyrics as a prefix has no student; use lyrics mode encoder"
            )
        return self

    @property
    def rows(self) -> int:
        return self.prior.transformer.blocks

    @property
    def columns(self) -> int:
        return self.prior.window // self.rows

    @property
    def steps(self) -> int:
        """Steps that emit one window."""
        return self.order.steps(self.prior.window, self.rows)


class Student(Prior):
    """q(codes of a window | conditioning), in steps of many slots. Sampled by sampling/students/."""

    def __init__(self, config: StudentConfig):
        super().__init__(config.prior)
        self.how = config
        width = config.prior.transformer.width
        self.above = Table(self.vocabulary, width, 0.0)
        self.missing = Table(1, width, 0.0)

    def sight(self, known_BT: Tensor | None = None) -> GridVisibility:
        """Who sees whom, where `known` [B, T] bool are given from the start."""
        device = self.input.tokens.weight.device
        tau_BT = times(self.how.order, self.config.window, self.how.rows, known_BT, device)
        return GridVisibility(tau_BT, self.how.rows)

    def embed(
        self,
        left_BN: Tensor,
        has_left_BN: Tensor,
        above_BN: Tensor,
        has_above_BN: Tensor,
        slots_N: Tensor,
        given: Conditioning,
    ) -> Tensor:
        """The inputs [B, N, W] of the slots: the token before and the one a row up where they `has` been emitted."""
        start_B1W = self.input.start_vector(len(left_BN), given.start)
        absent = start_B1W + self.missing(torch.zeros_like(slots_N)) * (slots_N > 0)[:, None]
        h = torch.where(
            has_left_BN[..., None], self.input.tokens(left_BN), absent
        ) + self.input.positions(slots_N)
        h = h if given.added is None else h + given.added[:, slots_N]
        return h + self.above(above_BN) * has_above_BN[..., None]

    def logits(
        self, tokens_BT: Tensor, given: Conditioning, known_BT: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] of every slot from what it sees, the whole window in one pass; of known slots too."""
        sight = self.sight(known_BT)
        slots = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        rolled = tokens_BT.roll(1, 1), sight.left, tokens_BT.roll(self.how.columns, 1), sight.above
        h = self.embed(*rolled, slots, given)
        # The teacher's own kernels where the rule is the teacher's: then equal to the last bit.
        order = None if sight.is_raster else sight
        for block in self.blocks:
            h = block(h, given.lyrics if block.attention.pattern == "lyrics" else None, order)
        return self.predict(h, given.added)

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] and metrics of `batch`, as of Prior.forward and, of windows that the teacher sampled:

        `teacher_bits` [B, T] its surprisal at each code, `soft_ids`, `soft_log_p` [B, T, K] its likeliest codes at
        every slot; `taught` [B] bool whether the window is the teacher's (else a real one).
        """
        given = self.conditioning(batch)
        codes = batch["codes"]
        known = (
            self.known_rows(codes) if self.training else torch.zeros_like(codes, dtype=torch.bool)
        )
        log_q = self.logits(codes, given, known).log_softmax(2)
        free = (~known).float()
        surprisal = -log_q.gather(2, codes[..., None])[..., 0] / LOG_2
        bits = (surprisal * free).sum() / free.sum()
        metrics = {"bits_per_code": bits.detach()}
        loss = bits
        if "taught" in batch:
            target = self.soft_targets(known)
            soft = self.soft_loss(log_q, batch, target) / free.sum()
            taught = free * batch["taught"].float()[:, None]
            gap = (
                (surprisal.detach() - batch["teacher_bits"]) * taught
            ).sum() / taught.sum().clamp(min=1)
            metrics |= {"kl_forward": gap, "bits_soft": soft.detach()}
            loss = soft + HARD_WEIGHT * (surprisal * (free - target.float())).sum() / free.sum()
        return loss, metrics

    def known_rows(self, codes_BT: Tensor) -> Tensor:
        """Rows that this training step takes as known, [B, T] bool: some of the first, less often some of the last.

        Teaches continuation (0, 1/4, 1/2 or 3/4 of the rows before), infilling and overlaps (up to 1/4 after).
        """
        batch = len(codes_BT)
        rows = self.how.rows
        device = codes_BT.device
        draw = torch.rand(4, batch, device=device)
        before = (draw[0] < self.how.known_before) * (draw[1] * 4).long() * (rows // 4)
        after = (draw[2] < self.how.known_after) * (draw[3] * (rows // 4)).ceil()
        row = torch.arange(rows, device=device)
        known = (row < before[:, None]) | (row >= rows - after[:, None])
        known = known & ~known.all(
            1, keepdim=True
        )  # a window of nothing but known rows teaches nothing
        return known.repeat_interleave(self.how.columns, dim=1)

    def soft_targets(self, known_BT: Tensor) -> Tensor:
        """[B, T] bool: slots whose target is the teacher's distribution: after which nothing is known.

        The best a student can do elsewhere is not the teacher's distribution given the past, since what comes later is
        evidence.
        """
        return self.sight(known_BT).knows_no_later & ~known_BT

    def soft_loss(self, log_q_BTV: Tensor, batch: dict, target_BT: Tensor) -> Tensor:
        """Sum of KL(teacher || student) in bits over the target slots. Codes outside the likeliest count as one."""
        log_q = log_q_BTV.gather(2, batch["soft_ids"])
        log_p = batch["soft_log_p"]
        inside = (log_p.exp() * (log_p - log_q)).sum(2)
        rest_p = rest(log_p)
        rest_q = rest(log_q)
        outside = rest_p.exp() * (rest_p - rest_q)
        return ((inside + outside) * target_BT).sum() / LOG_2


def rest(log_p_BTK: Tensor) -> Tensor:
    """log(1 - sum p): of all other codes together."""
    return torch.log1p(-log_p_BTK.exp().sum(2).clamp(max=1 - 1e-6))


def from_teacher(student: Student, teacher: Prior) -> Student:
    """`student` with the teacher's weights; what is new in it stays zero."""
    lacking, extra = student.load_state_dict(teacher.state_dict(), strict=False)
    assert set(lacking) == set(NEW) and not extra, (lacking, extra)
    return student
