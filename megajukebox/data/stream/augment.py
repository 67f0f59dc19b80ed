"""Changes of volume and tone that a clip of training audio may get; off by default."""

from dataclasses import dataclass

import numpy as np

BANDS = np.array(
    [60.0, 250.0, 1000.0, 4000.0, 16000.0]
)  # Hz: where the equaliser's curve is drawn, two octaves apart


@dataclass(frozen=True)
class Augment:
    """Every clip gets a random volume within +-`volume_db`, and a random tone curve within
    +-`eq_db` (decibels).
    """

    volume_db: float = 0.0
    eq_db: float = 0.0

    @property
    def on(self) -> bool:
        return self.volume_db > 0 or self.eq_db > 0

    def __call__(self, x_T: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """The clip [T] or [T, C], changed; as long as before, and every channel in the same way.

        A clip that would exceed full scale is scaled down as a whole.
        """
        if self.eq_db > 0:
            x_T = equalise(x_T, sample_rate, rng.uniform(-self.eq_db, self.eq_db, len(BANDS)))
        if self.volume_db > 0:
            x_T = x_T * 10 ** (rng.uniform(-self.volume_db, self.volume_db) / 20)
        return (x_T / max(1.0, float(np.abs(x_T).max(initial=0.0)))).astype(np.float32)


def equalise(x_T: np.ndarray, sample_rate: int, gains_db: np.ndarray) -> np.ndarray:
    """`x_T` with the gain (dB) at each of BANDS, and straight lines over log frequency between
    them.
    """
    frequency = np.fft.rfftfreq(len(x_T), 1 / sample_rate)
    curve = np.interp(np.log(np.maximum(frequency, 1.0)), np.log(BANDS), gains_db)
    return np.fft.irfft(np.fft.rfft(x_T.T) * 10 ** (curve / 20), len(x_T)).T
