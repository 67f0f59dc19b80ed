"""What evaluation says of a level whose target is `spectrum`: everything but what compares phases."""

import numpy as np
from fixtures.tiny_models import little_vqvae

from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.inputs import EvalSong
from megajukebox.evaluation.run_metrics import LevelReconstructions

SPECTRUM = {"window": 256, "output_window": 256, "width": 8, "code_width": 4, "codebook_size": 24}


def test_a_spectrum_level_has_mel_and_log_magnitude_distances_and_no_snr() -> None:
    spectrum = {**SPECTRUM, "phase": {"iterations": 2}}
    model = little_vqvae(sample_rate=8000, targets={"top": "spectrum"}, spectrum=spectrum)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 24_064).astype(np.float32)
    song = EvalSong("song", audio, 8000)
    nowhere = Embedder("none", lambda song: np.zeros((1, 2)))
    names = {}
    for level in ("top", "bottom"):
        reconstructions = LevelReconstructions(level, model)
        reconstructions.add(song, None, nowhere)
        names[level] = set(reconstructions.rows["song"])
        assert all(np.isfinite(x) for x in reconstructions.rows["song"].values()), level
        assert len(reconstructions.counts["song"]) == model.config.codebook_sizes[level]
        bands = [row["song"] for row in reconstructions.bands.values()]
        assert all(("snr_db" in row) == (level == "bottom") for row in bands)
    assert names["bottom"] - names["top"] == {"snr_db", "si_sdr_db"}
    assert {"mel_distance_db", "log_magnitude_db", "valley_noise_db", "peakiness_db"} <= names[
        "top"
    ]
