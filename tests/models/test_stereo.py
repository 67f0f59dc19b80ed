"""A VQ-VAE of left and right: one stream of codes, two channels of audio, and mono as it ever was."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import little_vqvae, vqvae_config
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.data.audio import as_channels, resampled
from megajukebox.interop.tensor_names import vqvae_table
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song_writer import SongWriter

SPECTRUM = {
    "window": 256,
    "output_window": 256,
    "width": 8,
    "code_width": 4,
    "codebook_size": 16,
    "phase": {"iterations": 3},
}
SETTINGS = {"channels": 2, "targets": {"top": "spectrum"}, "spectrum": SPECTRUM}
LEVELS = ("bottom", "middle", "top")
HOP = 128


@pytest.fixture(scope="module")
def stereo() -> VQVAE:
    return little_vqvae(**SETTINGS)


@pytest.fixture(scope="module")
def audio() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.2 * torch.randn(24 * HOP + 31, 2, generator=generator)


@pytest.mark.parametrize("level", LEVELS)
def test_pieces_of_a_stereo_song_are_those_of_the_whole(
    stereo: VQVAE, audio: Tensor, level: str
) -> None:
    whole = stereo.encode(audio[None, : 24 * HOP], level)[0]
    codes = encode_long(stereo, audio, level, 1.3)
    assert torch.equal(codes, whole) and codes.ndim == 1  # one stream
    wave = stereo.decode(codes[None], level)[0]
    assert wave.shape == (24 * HOP, 2)
    torch.testing.assert_close(decode_long(stereo, codes, level, 1.3), wave, rtol=1e-3, atol=1e-4)
    assert decode_long(stereo, codes[:0], level).shape == (0, 2)


def test_a_mono_level_is_one_channel_of_the_same_network() -> None:
    """The first channel's weights, alone: what the stereo spectrum level computes of two equal channels' mean."""
    mono = little_vqvae(targets={"top": "spectrum"}, spectrum=SPECTRUM).level("top")
    both = little_vqvae(**SETTINGS).level("top")
    wave = torch.randn(1, 12 * HOP, 1, generator=torch.Generator().manual_seed(1))
    alone = mono.features(wave, 256)
    pair = both.features(wave.expand(-1, -1, 2), 256)
    assert torch.equal(pair, torch.cat([alone, alone], dim=-1))
    state = both.state_dict()
    theirs = mono.state_dict()
    theirs["encoder.enter.weight"] = theirs["encoder.enter.weight"].repeat(1, 2, 1) / 2
    for name in ("decoder.leave.weight", "decoder.leave.bias"):
        theirs[name] = torch.cat([theirs[name], theirs[name]])
    assert {n: x.shape for n, x in theirs.items()} == {n: x.shape for n, x in state.items()}
    both.load_state_dict(theirs)
    codes = mono.encode(wave)
    assert torch.equal(both.encode(wave.expand(-1, -1, 2)), codes)
    decoded = both.decode(codes)
    assert torch.equal(decoded[..., 0], decoded[..., 1])
    torch.testing.assert_close(decoded[..., :1], mono.decode(codes), rtol=0, atol=1e-6)


def test_what_is_louder_on_one_side_stays_there() -> None:
    """A level that is trained on noise at one side or the other tells the sides apart, with one code a frame."""
    torch.manual_seed(0)
    spectrum = {**SPECTRUM, "width": 24, "kmeans_iterations": 10, "phase": {"iterations": 8}}
    model = VQVAE(vqvae_config(**{**SETTINGS, "spectrum": spectrum})).train()
    level = model.level("top")
    louder = torch.tensor([[0.3, 0.01], [0.01, 0.3]])  # left, right of two clips
    batch = torch.randn(2, 16 * HOP, 2) * louder[:, None]
    optimizer = torch.optim.Adam(level.parameters(), 3e-3)
    for _ in range(50):
        loss, commit, _ = level(batch)
        optimizer.zero_grad()
        (loss + 0.1 * commit).backward()
        optimizer.step()
    level.eval()
    with torch.no_grad():
        decoded = level.decode(level.encode(batch))
    power = decoded.square().mean(dim=1)  # [2 clips, 2 sides]
    left_db = 10 * torch.log10(power[:, 0] / power[:, 1])
    assert left_db[0] > 20 and left_db[1] < -20, left_db


def test_the_wave_loss_takes_each_channel_for_a_clip() -> None:
    """Two equal channels cost what one costs, whatever the term of the loss."""
    mono = little_vqvae()
    both = little_vqvae(channels=2)
    for level in LEVELS:
        state = mono.level(level).state_dict()
        first = next(name for name in state if name.startswith("encoder"))
        state[first] = state[first].repeat(1, 2, *[1] * (state[first].ndim - 2)) / 2
        theirs = both.level(level).state_dict()
        for name, shape in {n: x.shape for n, x in theirs.items()}.items():
            if state[name].shape != shape:  # the decoder's last layer
                state[name] = torch.cat([state[name], state[name]])
        both.level(level).load_state_dict(state)
    wave = 0.3 * torch.randn(2, 8 * HOP, 1, generator=torch.Generator().manual_seed(2))
    ours, facts = both({"audio": wave.expand(-1, -1, 2)})
    expected, theirs = mono({"audio": wave})
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(facts["bottom/snr_db"], theirs["bottom/snr_db"])


# ---- Songs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("stereo") / "runs", vqvae_settings=SETTINGS)


@pytest.mark.parametrize("levels", [["top"], ["all"]])
def test_a_stereo_song_is_streamed_as_it_is_decoded_whole(
    runs: Path, tmp_path: Path, levels: list[str]
) -> None:
    box = Jukebox(runs, levels=levels)
    request = SongRequest(id="song", seconds=2.304, seed=8, temperature=3.0, artist="ilune")
    box.sample([request], sink=SongWriter(box, tmp_path))
    streamed, _ = soundfile.read(tmp_path / "song.wav", dtype="float32")
    song = box.sample([request])[0]
    finest = song.audio[box.main_level]
    assert streamed.shape == finest.shape == (18 * HOP, 2)
    assert np.abs(streamed[:, 0] - streamed[:, 1]).max() > 0.01
    np.testing.assert_allclose(streamed, finest, atol=1 / 32768)
    codes = torch.from_numpy(song.codes[box.main_level])
    whole = decode_long(box.vqvae, codes, box.main_level, 100.0).clamp(-1, 1)
    np.testing.assert_allclose(finest, whole.numpy(), atol=1e-4)


def test_a_recording_is_continued_in_stereo_and_a_mono_one_from_the_middle(
    runs: Path, tmp_path: Path
) -> None:
    box = Jukebox(runs, levels=["top"])
    sides = np.random.default_rng(1).uniform(-0.5, 0.5, (8192, 2)).astype(np.float32)
    known = {}
    for name, wave in (("sides", sides), ("left", sides[:, :1]), ("twice", sides[:, [0, 0]])):
        soundfile.write(tmp_path / f"{name}.wav", wave, 4000, subtype="FLOAT")
        request = SongRequest(id="x", prompt=str(tmp_path / f"{name}.wav"), seconds=3.0)
        known[name] = box.start_song(request).known.codes["top"]
    resampled_TC = torch.from_numpy(resampled(sides, 4000, 1000))
    expected = encode_long(box.vqvae, resampled_TC, "top").numpy()
    assert np.array_equal(known["sides"][: len(expected)], expected)
    assert np.array_equal(known["left"], known["twice"])
    assert not np.array_equal(known["sides"], known["left"])


# ---- Data and files --------------------------------------------------------------------------------------------------


def test_channels_of_recordings_become_those_of_the_model() -> None:
    rng = np.random.default_rng(0)
    mono, pair, six = (rng.standard_normal((5, n)).astype(np.float32) for n in (1, 2, 6))
    assert np.array_equal(as_channels(pair, 2), pair)
    assert np.array_equal(as_channels(mono, 2), np.repeat(mono, 2, axis=1))
    assert as_channels(six, 2).shape == (5, 2)
    assert np.array_equal(as_channels(pair, 1, 0.25), 0.25 * pair[:, 0] + 0.75 * pair[:, 1])
    assert np.array_equal(as_channels(mono, 1), mono[:, 0])


def test_the_references_layouts_refuse_stereo() -> None:
    with pytest.raises(UserError, match=r"stereo.*--layout megajukebox"):
        vqvae_table(vqvae_config(channels=2))
