"""A codebook learned by moving averages, reduced over all ranks, with restarts of codes that nobody uses."""

# N vectors   D size of a vector   K codes
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

WARMUP_COMMIT = 0.05  # of the commitment loss: a bound for the vectors, which nothing rounds yet


def _all_reduce(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


class Codebook(nn.Module):
    """K vectors of size D. `update` is the only thing that changes them; no gradient ever does.

    `fresh_restarts=True` (ours) gives a restarted code the threshold as its count, so that it stays where it was put
    until the average says otherwise. False is Jukebox's rule: stale sums are kept and a dead code is drawn again at
    every step (van den Oord et al. 2017, appendix A.1; Dhariwal et al. 2020, section 3.2 on restarts).
    `kmeans_iterations` of Lloyd's algorithm settle the first codes in the first batch. Through `warmup` passes of
    training before that nothing is rounded: an autoencoder first, codes of what it has become afterwards.
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor
    passes: Tensor  # of training so far; only with a warm-up, so that other runs keep their tensors

    def __init__(
        self,
        codes: int,
        width: int,
        decay: float = 0.99,
        threshold: float = 1.0,
        fresh_restarts: bool = True,
        kmeans_iterations: int = 0,
        warmup: int = 0,
    ):
        super().__init__()
        self.kmeans_iterations = kmeans_iterations
        self.warmup = warmup
        self.decay = decay
        self.threshold = threshold
        self.fresh_restarts = fresh_restarts
        self.register_buffer("vectors", torch.zeros(codes, width))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("started", torch.tensor(False))
        if warmup:
            self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._seen_started: tuple[Tensor, int] | None = None

    def nearest(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The index of the nearest code to each vector [N] (the first of equals), and the squared distance [N]."""
        x_ND = x_ND.float()
        with torch.autocast(
            "cuda" if x_ND.is_cuda else "cpu", enabled=False
        ):  # bfloat16 cannot tell near codes apart
            scores = torch.addmm(self.vectors.square().sum(1), x_ND, self.vectors.t(), alpha=-2)
        score, codes = scores.min(dim=1)
        return codes, score + x_ND.square().sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors [..., D] of `codes` [...]."""
        return F.embedding(codes, self.vectors)

    @torch.no_grad()
    def candidates(self, x_ND: Tensor) -> Tensor:
        """K vectors drawn from this batch on rank 0, the same on every rank.

        A batch of fewer vectors is repeated with a little noise.
        """
        size, width = self.vectors.shape
        if len(x_ND) < size:
            x_ND = x_ND.repeat(-(-size // len(x_ND)), 1)
            x_ND = x_ND + torch.randn_like(x_ND) * 0.01 / width**0.5
        drawn = torch.randperm(len(x_ND), device=x_ND.device)[:size]
        candidates_KD = x_ND[drawn].float().contiguous()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(candidates_KD, 0)
        return candidates_KD

    def is_warming_up(self) -> bool:
        """Whether nothing is rounded yet; counts a pass of training."""
        if not self.warmup or self._seen_started or bool(self.started):
            return False
        if not self.training:
            return True
        self.passes.add_(1)
        return int(self.passes) <= self.warmup

    @torch.no_grad()
    def start(self, x_ND: Tensor) -> None:
        """Take the first batch's vectors as the codes, once.

        `started` is read from the device only after somebody wrote it (training, a checkpoint, an undone step): every
        in-place write counts up its version. Tensors made in inference mode have none and are read each time.
        """
        counts_versions = not self.started.is_inference()
        seen = self._seen_started
        if (
            counts_versions
            and seen
            and seen[0] is self.started
            and seen[1] == self.started._version
        ):
            return
        if not bool(self.started):
            self.vectors.copy_(self.candidates(x_ND))
            self._cluster(x_ND)
            self.sums.copy_(self.vectors)
            self.counts.fill_(1.0)
            self.started.fill_(True)
        if counts_versions:
            self._seen_started = (self.started, self.started._version)

    def _cluster(self, x_ND: Tensor) -> None:
        """Lloyd's algorithm over the vectors of all ranks; a code that none chooses stays where it is."""
        for _ in range(self.kmeans_iterations):
            codes, _ = self.nearest(x_ND)
            counts, sums = self._totals(x_ND, codes)
            means = sums / counts.clamp(min=1)[:, None]
            self.vectors.copy_(torch.where(counts[:, None] > 0, means, self.vectors))

    def _totals(self, x_ND: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """How many vectors chose each code [K], and their sum [K, D], over all ranks."""
        # Sums of ones are exact in float32 up to 2^24 vectors; bincount would wait for a GPU, twice.
        counts = torch.zeros_like(self.counts).scatter_add_(
            0, codes, torch.ones_like(codes, dtype=torch.float32)
        )
        counts = _all_reduce(counts)
        return counts, _all_reduce(torch.zeros_like(self.sums).index_add_(0, codes, x_ND.float()))

    @torch.no_grad()
    def restore_counts(self, tokens_per_step: float) -> None:
        """Counts for further training from vectors alone (a released checkpoint keeps no others; spec 4.2)."""
        self.counts.fill_(tokens_per_step / len(self.vectors))
        self.sums.copy_(self.vectors * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def update(
        self, x_ND: Tensor, codes: Tensor, candidates: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Move every code to the running mean of the vectors that chose it; give unused codes a vector of this batch.

        Returns `entropy` (nats) and `used` (codes chosen) of this batch over all ranks, `usage` (codes alive in the
        running average) and `moved` (root mean square change of the codes).
        """
        candidates = self.candidates(x_ND) if candidates is None else candidates
        counts, sums = self._totals(x_ND, codes)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        alive = self.counts >= self.threshold
        usage = alive.sum()
        vectors = torch.where(alive[:, None], self.sums / self.counts[:, None], candidates)
        if self.fresh_restarts:
            self.sums.copy_(torch.where(alive[:, None], self.sums, candidates * self.threshold))
            self.counts.copy_(torch.where(alive, self.counts, self.threshold))
        moved = (vectors - self.vectors).square().mean().sqrt()
        self.vectors.copy_(vectors)
        share = counts / counts.sum()
        return {
            "entropy": -(share * (share + 1e-8).log()).sum(),
            "used": (counts >= self.threshold).sum().float(),
            "usage": usage.float(),
            "moved": moved,
        }


def quantise(
    codebook: Codebook, x_ND: Tensor, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The nearest code vectors [N, D], the commitment loss [], and facts; in training the codebook learns.

    The gradient of the vectors goes to `x_ND` as if nothing had been rounded (van den Oord et al. 2017, section 3.2).
    While the codebook warms up nothing is rounded, and the commitment loss is to zero, so that vectors stay small.
    """
    if codebook.is_warming_up():
        facts = {"prenorm": (x_ND.detach() - x_ND.detach().mean()).square().mean().sqrt()}
        return x_ND, WARMUP_COMMIT * x_ND.square().mean(), facts
    if codebook.training:
        codebook.start(x_ND.detach())
    codes, fit = codebook.nearest(x_ND.detach())
    q_ND = codebook.lookup(codes)
    commit = (q_ND - x_ND).square().mean()
    straight_ND = x_ND + (q_ND - x_ND).detach()
    facts = {
        "fit": fit.mean(),
        "prenorm": (x_ND.detach() - x_ND.detach().mean()).square().mean().sqrt(),
    }
    if codebook.training:
        facts |= codebook.update(x_ND.detach(), codes, candidates)
    return straight_ND, commit, facts
