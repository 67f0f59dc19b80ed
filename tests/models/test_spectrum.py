"""A level without phase: its frames, its phases, its codes, and its place beside levels of the wave."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import little_vqvae, vqvae_config
from pydantic import ValidationError
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.interop.tensor_names import vqvae_table
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.codebook import Codebook
from megajukebox.models.frames import frame_spectra, overlap_add
from megajukebox.models.griffin_lim import GriffinLim, first_phases, wave_of_magnitudes
from megajukebox.models.spectrum import SpectrumConfig, SpectrumLevel
from megajukebox.models.vqvae import VQVAE

HOP = 128
SMALL = {"window": 256, "output_window": 512, "width": 8, "code_width": 4, "codebook_size": 24}
RATE = 8000


def spectrum_vqvae(**changed) -> VQVAE:
    """A top of 24 codes over a middle and a bottom of the wave with 16."""
    spectrum = {**SMALL, "phase": {"iterations": 4}} | changed
    return little_vqvae(targets={"top": "spectrum"}, spectrum=spectrum)


def top_of(model: VQVAE) -> SpectrumLevel:
    level = model.level("top")
    assert isinstance(level, SpectrumLevel)
    return level


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- Frames and phases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [256, 384, 1024])
def test_overlap_add_undoes_frame_spectra(window: int) -> None:
    wave = noise(2, 12 * HOP)
    spectra = frame_spectra(wave, window, HOP)
    assert spectra.shape == (2, 12, window // 2 + 1)
    torch.testing.assert_close(overlap_add(spectra, window, HOP), wave, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [256, 1024])
def test_a_sine_of_amplitude_a_has_magnitude_a_half_at_its_bin(window: int) -> None:
    cycles = 20 * window // 256  # per window: a whole number, so that no other bin has its energy
    wave = 0.6 * torch.sin(2 * torch.pi * cycles / window * torch.arange(16 * HOP))
    middle = frame_spectra(wave[None], window, HOP).abs()[0, 8]
    assert int(middle.argmax()) == cycles
    assert middle.max().item() == pytest.approx(0.3, rel=1e-3)


def test_more_iterations_bring_the_spectra_nearer_to_what_was_asked() -> None:
    time = torch.arange(40 * HOP) / RATE
    wave = sum(torch.sin(2 * torch.pi * 440 * n * time) / n for n in (1, 2, 3))[None]
    magnitudes = frame_spectra(wave, 512, HOP).abs()

    def error(iterations: int) -> float:
        found = wave_of_magnitudes(magnitudes, 512, HOP, GriffinLim(iterations=iterations))
        return float((frame_spectra(found, 512, HOP).abs() - magnitudes).norm() / magnitudes.norm())

    assert error(0) > error(8) > error(32)
    assert error(32) < 0.2


def test_a_piece_with_its_reach_of_context_sounds_as_in_the_whole() -> None:
    config = GriffinLim(iterations=6)
    magnitudes = noise(1, 120, 257).abs()
    reach = config.reach(512, HOP)
    whole = wave_of_magnitudes(magnitudes, 512, HOP, config)
    first, last = 60 - reach, 70 + reach
    piece = wave_of_magnitudes(magnitudes[:, first:last], 512, HOP, config, first)
    ours = piece[:, reach * HOP : (reach + 10) * HOP]
    torch.testing.assert_close(ours, whole[:, 60 * HOP : 70 * HOP], rtol=1e-3, atol=1e-4)


def test_the_reach_is_what_a_change_reaches() -> None:
    """A frame beyond the reach changes nothing; one a little nearer does: the number is no mere upper bound."""
    config = GriffinLim(iterations=3)
    magnitudes = noise(1, 80, 257).abs().double()
    other = magnitudes.clone()
    other[:, 40] *= 3
    waves = [wave_of_magnitudes(m, 512, HOP, config) for m in (magnitudes, other)]
    changed = (waves[0] != waves[1])[0].view(80, HOP).any(1).nonzero().flatten()
    reached = max(40 - int(changed[0]), int(changed[-1]) - 40)
    assert config.reach(512, HOP) - 2 <= reached <= config.reach(512, HOP)


def test_first_phases_depend_on_the_frame_alone_and_are_spread_evenly() -> None:
    whole = first_phases(0, 50, 257, torch.device("cpu"))
    assert torch.equal(first_phases(20, 10, 257, torch.device("cpu")), whole[20:30])
    assert whole.mean().abs() < 0.02
    assert (whole[1:] * whole[:-1].conj()).mean().abs() < 0.02


# ---- A level --------------------------------------------------------------------------------------------------------


def test_a_tone_keeps_its_loudest_bin() -> None:
    """The decoder learns three tones from the codes of an encoder that stays as it was drawn."""
    torch.manual_seed(0)
    level = SpectrumLevel(SpectrumConfig(**SMALL | {"width": 32, "code_width": 16}), HOP, RATE)
    bins = torch.tensor([10, 24, 60])  # of 512 samples at 8 kHz: 156 to 938 Hz
    time = torch.arange(16 * HOP)
    tones = (0.5 * torch.sin(2 * torch.pi * bins[:, None] / 512 * time)).unsqueeze(-1)
    level.codebook.start(level.vectors(tones).detach().flatten(0, 1))
    level.eval()
    optimizer = torch.optim.AdamW(level.decoder.parameters(), 5e-3)
    for _ in range(25):
        loss, _, _ = level(tones)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoded = level.decode(level.encode(tones)).squeeze(-1)
    loudest = frame_spectra(decoded, 512, HOP).abs()[:, 4:-4].mean(1).argmax(1)
    assert (loudest - bins).abs().max() <= 1


def test_a_learned_level_codes_log_magnitudes_better_than_their_mean() -> None:
    torch.manual_seed(0)
    level = SpectrumLevel(SpectrumConfig(**SMALL), HOP, RATE)
    gains = torch.logspace(-2, 0, 3)[:, None]
    audio = (gains * noise(3, 16 * HOP)).unsqueeze(-1)
    optimizer = torch.optim.AdamW(level.parameters(), 1e-2)
    distances = []
    for _ in range(60):
        loss, commit, facts = level(audio)
        distances.append(float(facts["mel_distance_db"]))
        optimizer.zero_grad()
        (loss + 0.1 * commit).backward()
        optimizer.step()
    assert distances[-1] < 0.4 * distances[0]
    assert facts["used"] > 3


def test_the_facts_in_decibels_are_those_of_the_spectra() -> None:
    level = top_of(spectrum_vqvae())
    audio = noise(2, 8 * HOP, 1)
    y = level.magnitudes(level.decoder(level.codebook.lookup(level.encode(audio))))
    x = frame_spectra(audio[..., 0], 512, HOP).abs()
    floor = level.config.floor
    expected = (20 * torch.log10((y + floor) / (x + floor))).abs().mean()
    _, _, facts = level(audio)
    assert facts["log_magnitude_db"].item() == pytest.approx(expected.item(), rel=0.02)


# ---- In a VQ-VAE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1.5, 3.3])
def test_chunks_of_a_spectrum_level_are_those_of_the_whole(chunk: float) -> None:
    model = spectrum_vqvae()
    audio = noise(60 * HOP + 57)
    whole = model.encode(audio[None, : 60 * HOP, None], "top")[0]
    codes = encode_long(model, audio, "top", chunk)
    assert torch.equal(codes, whole)
    assert codes.unique().numel() > 3
    wave = model.decode(codes[None], "top")[0, :, 0]
    torch.testing.assert_close(decode_long(model, codes, "top", chunk), wave, rtol=1e-3, atol=1e-4)


def test_wave_levels_beside_a_spectrum_top_are_what_they_are_without_it() -> None:
    """Same weights, same loss to the bit: the target of one level is no other level's business."""
    plain = little_vqvae()
    mixed = spectrum_vqvae()
    shared = {n: x for n, x in plain.state_dict().items() if not n.startswith("levels.top.")}
    mixed.load_state_dict(shared, strict=False)
    audio = noise(2, 8 * HOP, 1)
    _, ours = mixed({"audio": audio})
    _, theirs = plain({"audio": audio})
    for level in ("bottom", "middle"):
        for name in ("reconstruction", "commit", "snr_db"):
            assert torch.equal(ours[f"{level}/{name}"], theirs[f"{level}/{name}"])


def test_every_level_has_its_own_number_of_codes() -> None:
    config = spectrum_vqvae().config
    assert config.codebook_sizes == {"bottom": 16, "middle": 16, "top": 24}
    assert vqvae_config().codebook_sizes == {"bottom": 16, "middle": 16, "top": 16}


def test_wave_levels_train_on_their_share_of_a_batch() -> None:
    model = little_vqvae(targets={"top": "spectrum"}, spectrum=SMALL, wave_batch_ratio=0.25).train()
    audio = noise(8, 8 * HOP, 1)
    seen: dict[str, int] = {}
    for name, level in model.levels.items():
        level.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: len(args[0])})
        )
    model({"audio": audio})
    assert seen == {"bottom": 2, "middle": 2, "top": 8}
    model.eval()({"audio": audio})
    assert seen == {"bottom": 8, "middle": 8, "top": 8}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"targets": {"top": "phase"}}, "targets"),
        ({"targets": {"treble": "spectrum"}}, "targets names 'treble'; levels are bottom"),
        ({"spectrum": {}}, "no level has it"),
        ({"targets": {"top": "spectrum"}, "spectrum": {"window": 128}}, "less than two hops"),
        ({"targets": {"top": "spectrum"}, "spectrum": {"window": 301}}, "is odd"),
    ],
)
def test_a_spectrum_level_that_cannot_be_is_refused(changed: dict, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        vqvae_config(**changed)


def test_the_references_layouts_refuse_a_spectrum_level() -> None:
    with pytest.raises(UserError, match=r"top level has target spectrum.*--layout megajukebox"):
        vqvae_table(spectrum_vqvae().config)
    assert vqvae_table(vqvae_config())


# ---- The start of its codebook --------------------------------------------------------------------------------------

RANK = """
import sys, torch, torch.distributed as dist
from megajukebox.models.codebook import Codebook
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.manual_seed(rank)
book = Codebook(5, 3, kmeans_iterations=4)
book.start(torch.load(f"{folder}/data.pt")[rank])
torch.save(book.vectors, f"{folder}/rank-{rank}.pt")
dist.barrier()
"""


def test_two_ranks_start_from_the_clusters_of_both_batches(tmp_path: Path) -> None:
    """Lloyd's algorithm as a plain loop over the vectors of both ranks, from the codes that rank 0 drew."""
    parts = [noise(30, 3, seed=1), noise(30, 3, seed=2) + 1]
    torch.save(parts, tmp_path / "data.pt")
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    torch.manual_seed(0)
    expected = Codebook(5, 3).candidates(parts[0]).double()
    every = torch.cat(parts).double()
    for _ in range(4):
        codes = torch.cdist(every, expected).argmin(1)
        for code in range(5):
            if (codes == code).any():
                expected[code] = every[codes == code].mean(0)
    found = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)
