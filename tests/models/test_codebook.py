"""The codebook: it follows the vectors that choose it, restarts what nobody uses, and is one book on all ranks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from megajukebox.models.codebook import Codebook, quantise


def started(codes: int = 6, width: int = 3, **settings) -> Codebook:
    torch.manual_seed(0)
    book = Codebook(codes, width, decay=0.8, **settings)
    book.start(torch.randn(40, width))
    return book


def step(book: Codebook, x: Tensor, candidates: Tensor) -> dict[str, Tensor]:
    return book.update(x, book.nearest(x)[0], candidates)


def test_nearest_is_the_first_of_the_nearest_codes() -> None:
    book = started()
    book.vectors[4] = book.vectors[1]
    x = torch.randn(50, 3)
    codes, distances = book.nearest(x)
    every = (x[:, None].double() - book.vectors[None].double()).square().sum(-1)
    assert codes.tolist() == every.argmin(1).tolist() and 4 not in codes
    torch.testing.assert_close(distances, every.min(1).values.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(book.lookup(codes.view(5, 10)), book.vectors[codes].view(5, 10, 3))


@pytest.mark.parametrize("fresh_restarts", [True, False])
def test_the_codebook_equals_a_plain_loop_over_codes(fresh_restarts: bool) -> None:
    """Three batches in which some codes die; the loop is the specification (section 4.2), in double precision."""
    book = started(fresh_restarts=fresh_restarts, threshold=1.3)
    vectors, sums, counts = (
        x.double().numpy().copy() for x in (book.vectors, book.sums, book.counts)
    )
    for _ in range(3):
        x, candidates = torch.randn(12, 3), torch.randn(6, 3)
        codes = book.nearest(x)[0].numpy()
        facts, before = step(book, x, candidates), vectors.copy()
        alive = 0
        for k in range(6):
            chosen = x.numpy()[codes == k].astype(float)
            counts[k] = 0.8 * counts[k] + 0.2 * len(chosen)
            sums[k] = 0.8 * sums[k] + 0.2 * chosen.sum(0)
            if counts[k] >= 1.3:
                vectors[k], alive = sums[k] / counts[k], alive + 1
            else:
                vectors[k] = candidates[k].numpy()
                if fresh_restarts:
                    counts[k], sums[k] = 1.3, 1.3 * vectors[k]
        for ours, plain in ((book.vectors, vectors), (book.sums, sums), (book.counts, counts)):
            np.testing.assert_allclose(ours.numpy(), plain, rtol=1e-5, atol=1e-6)
        share = np.bincount(codes, minlength=6) / 12
        assert facts["entropy"].item() == pytest.approx(
            -sum(p * np.log(p) for p in share if p), abs=1e-5
        )
        assert facts["usage"].item() == alive < 6
        assert facts["used"].item() == (share * 12 >= 1.3).sum()
        assert facts["moved"].item() == pytest.approx(
            np.sqrt(np.mean((vectors - before) ** 2)), rel=1e-4
        )


def test_a_restarted_code_stays_where_it_was_put_until_it_is_used() -> None:
    """Two codes that no vector chooses: ours stay, Jukebox's rule draws them again at every step."""
    for fresh, stays in ((True, True), (False, False)):
        book = started(codes=4, fresh_restarts=fresh, threshold=1.0)
        book.vectors[2:] = 100.0
        book.counts[2:] = 0.0
        step(book, torch.randn(8, 3), torch.full((4, 3), 50.0))
        assert (book.vectors[2:] == 50.0).all()
        book.counts.clamp_(
            min=1.3
        )  # the two would decay below the threshold otherwise, and rightly be drawn again
        if not fresh:
            book.counts[2:] = 0.0
        step(book, torch.randn(8, 3), torch.full((4, 3), 60.0))
        assert (book.vectors[2:] < 55.0).all() == stays


def test_candidates_are_vectors_of_the_batch_or_nearly() -> None:
    book, many, few = started(), torch.randn(50, 3), torch.randn(2, 3)
    assert all((many == candidate).all(1).any() for candidate in book.candidates(many))
    drawn = book.candidates(few)
    distance = torch.cdist(drawn, few).min(1).values
    assert drawn.shape == (6, 3) and 0 < distance.max() < 0.05


def test_only_the_first_batch_starts_a_codebook() -> None:
    book = started()
    before = book.vectors.clone()
    book.start(torch.randn(40, 3))
    assert (
        torch.equal(book.vectors, before)
        and torch.equal(book.sums, before)
        and (book.counts == 1).all()
    )


def test_restored_counts_leave_the_vectors_where_they_are() -> None:
    book = started()
    before = book.vectors.clone()
    book.restore_counts(60.0)
    assert (book.counts == 10).all()
    torch.testing.assert_close(book.sums / book.counts[:, None], before)


def test_a_codebook_follows_its_cluster() -> None:
    book = started(codes=2)
    centres = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0]])
    for _ in range(60):
        x = centres.repeat(20, 1) + 0.1 * torch.randn(40, 3)
        book.update(x, book.nearest(x)[0])
    assert torch.cdist(centres, book.vectors).min(1).values.max() < 0.2


RANK = """
import sys, torch, torch.distributed as dist
from megajukebox.models.codebook import Codebook, quantise
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
torch.manual_seed(rank)
book = Codebook(6, 3, decay=0.8)
data = torch.load(f"{folder}/data.pt")
facts = []
for number, (parts, candidates) in enumerate(data):
    x = parts[rank] if size > 1 else torch.cat(parts)
    if number == 0:
        book.start(x if size > 1 else parts[0])
    facts.append(book.update(x, book.nearest(x)[0], candidates))
own = book.candidates(x)
torch.save((book.state_dict(), facts, own), f"{folder}/rank-{rank}-of-{size}.pt")
if size > 1:  # or a thread of gloo's may outlive the process, which aborts it
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_ranks_keep_the_codebook_of_one_process_with_both_batches(tmp_path: Path) -> None:
    torch.manual_seed(3)
    batches = [([torch.randn(9, 3), torch.randn(13, 3)], torch.randn(6, 3)) for _ in range(4)]
    torch.save(batches, tmp_path / "data.pt")
    places = [(0, 1), (0, 2), (1, 2)]
    started = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(size), str(tmp_path)])
        for rank, size in places
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    (one, facts, _), *ranks = (
        torch.load(tmp_path / f"rank-{rank}-of-{size}.pt") for rank, size in places
    )
    for state, told, _ in ranks:
        torch.testing.assert_close(state, one, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(told, facts, rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0][0]["vectors"], ranks[1][0]["vectors"])
    assert torch.equal(ranks[0][2], ranks[1][2]), "candidates are rank 0's on every rank"


def test_counts_are_those_of_bincount() -> None:
    book = started(codes=40)
    codes = torch.randint(0, 40, (5000,))
    book.counts.zero_()
    book.update(torch.randn(5000, 3), codes, torch.zeros(40, 3))
    alive = torch.bincount(codes, minlength=40).float() * (1 - 0.8)
    torch.testing.assert_close(book.counts, alive.clamp(min=book.threshold))


def test_a_book_that_is_put_back_to_before_its_start_starts_again() -> None:
    """It asks the device for `started` only when somebody wrote there; the engine does, after a bad first step."""
    torch.manual_seed(0)
    book = Codebook(6, 3)
    before = [buffer.clone() for buffer in book.buffers()]
    book.start(torch.full((40, 3), float("nan")))
    assert book.vectors.isnan().all()
    for buffer, value in zip(book.buffers(), before):
        buffer.copy_(value)
    book.start(torch.randn(40, 3))
    assert book.vectors.isfinite().all() and book.vectors.any()
    kept = book.vectors.clone()
    book.start(torch.randn(40, 3))
    assert torch.equal(book.vectors, kept), "a codebook starts once"
    book.load_state_dict({**book.state_dict(), "started": torch.tensor(False)})
    book.start(torch.randn(40, 3))
    assert not torch.equal(book.vectors, kept), "a checkpoint from before the start was loaded"


def test_a_book_made_in_inference_mode_starts_once_too() -> None:
    with torch.inference_mode():
        book = started()
        vectors = book.vectors.clone()
        book.start(torch.randn(40, 3))
    assert bool(book.started) and torch.equal(book.vectors, vectors)


def test_through_the_warm_up_nothing_is_rounded_and_then_k_means_begins() -> None:
    torch.manual_seed(0)
    book = Codebook(8, 3, kmeans_iterations=10, warmup=2).train()
    centres = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [-5, -5, -5]])
    x = (centres.repeat(25, 1) + 0.1 * torch.randn(100, 3)).requires_grad_()
    for _ in range(2):
        rounded, commit, facts = quantise(book, x)
        assert torch.equal(rounded, x) and not book.started and "used" not in facts
        assert commit > 0
    rounded, _, facts = quantise(book, x)
    assert book.started and not torch.equal(rounded, x) and facts["used"] > 4
    drawn = Codebook(8, 3).train()
    drawn.start(x.detach())
    assert facts["fit"] < 0.8 * drawn.nearest(x.detach())[1].mean(), "nearer than codes drawn of x"
    book.eval()
    again, _, _ = quantise(book, x)
    torch.testing.assert_close(again, book.lookup(book.nearest(x)[0]))


def test_a_warm_up_goes_on_after_a_restart_and_others_have_no_such_tensor() -> None:
    torch.manual_seed(0)
    book = Codebook(4, 3, warmup=3).train()
    quantise(book, torch.randn(20, 3))
    resumed = Codebook(4, 3, warmup=3).train()
    resumed.load_state_dict(book.state_dict())
    quantise(resumed, torch.randn(20, 3))
    quantise(resumed, torch.randn(20, 3))
    assert not resumed.started
    quantise(resumed, torch.randn(20, 3))
    assert resumed.started
    assert "passes" not in Codebook(4, 3).state_dict()
