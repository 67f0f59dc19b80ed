"""What a mastering engineer looks at first: loudness (ITU-R BS.1770-4), peaks, clipping, silence, DC."""

# T samples   N blocks of 400 ms
from collections.abc import Mapping

import numpy as np

Array = np.ndarray
BLOCK_SECONDS, STEP_SECONDS = 0.4, 0.1  # BS.1770: gating blocks overlap by 75 %
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0  # BS.1770
SILENCE_LUFS = -60.0  # of a block
FULL_SCALE = 0.999  # 16 bits hold 32767/32768; what lies above is taken for the limit itself
MIN_CLIPPED_RUN = 3  # samples at full scale: one or two are the top of a loud wave
MIN_PEAK = 1e-6  # -120 dB, reported for silence
# BS.1770-4, tables 1 and 2, at 48 kHz: the head's shelf, and the high pass.
SHELF_B = (1.53512485958697, -2.69169618940638, 1.19839281085285)
SHELF_A = (1, -1.69065929318241, 0.73248077421585)
HIGH_PASS_B = (1, -2, 1)
HIGH_PASS_A = (1, -1.99004745483398, 0.99007225036621)


def sound_metrics(audio_T: Array, rate: int) -> Mapping[str, float]:
    """The metrics of one mono recording."""
    power_N = block_power(k_weighted(audio_T, rate), rate)
    return {
        "loudness_lufs": integrated_loudness(power_N),
        "true_peak_db": true_peak(audio_T),
        "clipped": clipped_fraction(audio_T),
        "silent": float((lufs(power_N) < SILENCE_LUFS).mean()),
        "dc": float(abs(audio_T.mean(dtype=np.float64))) if len(audio_T) else 0.0,
    }


def lufs(power: Array | float) -> Array:
    """-0.691 + 10 log10 of mean square: one channel of weight 1."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def integrated_loudness(power_N: Array) -> float:
    """Mean power of the blocks above -70 LUFS and above 10 LU below their own mean, in LUFS."""
    loud = power_N[lufs(power_N) > ABSOLUTE_GATE_LUFS]
    if not len(loud):
        return ABSOLUTE_GATE_LUFS
    return float(lufs(loud[lufs(loud) > lufs(loud.mean()) + RELATIVE_GATE_LU].mean()))


def block_power(x_T: Array, rate: int) -> Array:
    """[N] mean square of blocks of 400 ms, 100 ms apart; a shorter recording is one block."""
    size = round(BLOCK_SECONDS * rate)
    step = round(STEP_SECONDS * rate)
    total = np.concatenate([[0.0], np.cumsum(x_T.astype(np.float64) ** 2)])
    starts = np.arange(0, max(len(x_T) - size, 0) + 1, step)
    ends = np.minimum(starts + size, len(x_T))
    return (total[ends] - total[starts]) / np.maximum(ends - starts, 1)


def k_weighted(audio_T: Array, rate: int) -> Array:
    """Apply the K weighting of BS.1770 by its gain at each frequency.

    BS.1770 gives the filters as recursions at 48 kHz. Applied as a gain to the whole spectrum they need no
    filter design for other rates: the gain of the 48 kHz filters at the same frequency is that of the
    standard. Power does not depend on phase.
    """
    if not len(audio_T):
        return audio_T
    # A second of silence at the end: it must not wrap round.
    size = 2 ** int(np.ceil(np.log2(len(audio_T) + rate)))
    spectrum = np.fft.rfft(audio_T, size) * k_gain(np.fft.rfftfreq(size, 1 / rate))
    return np.fft.irfft(spectrum, size)[: len(audio_T)]


def k_gain(hertz: Array) -> Array:
    """|H| of the two filters of BS.1770-4 at frequencies in Hz."""
    z = np.exp(-2j * np.pi * np.minimum(hertz, 23_999) / 48_000)
    shelf = np.polyval(SHELF_B[::-1], z) / np.polyval(SHELF_A[::-1], z)
    high_pass = np.polyval(HIGH_PASS_B[::-1], z) / np.polyval(HIGH_PASS_A[::-1], z)
    return np.abs(shelf * high_pass)


def true_peak(audio_T: Array) -> float:
    """Highest point between samples in dB, by fourfold oversampling; -120 for silence."""
    peak = MIN_PEAK
    piece = 1 << 16  # samples whose spectrum is computed at once
    margin = 64  # samples of the neighbouring pieces, to hide the piece's ends
    for start in range(0, len(audio_T), piece):
        x = audio_T[max(0, start - margin) : start + piece + margin].astype(np.float64)
        # Ends that fade over 32 samples: a jump between them would ring.
        gain = np.ones(len(x))
        ramp = np.linspace(0, 1, 32)[: len(x) // 2]
        gain[: len(ramp)] = ramp
        gain[len(x) - len(ramp) :] = ramp[::-1]
        spectrum = np.fft.rfft(x * gain)
        peak = max(peak, float(np.abs(np.fft.irfft(spectrum, 4 * len(x))).max(initial=0)) * 4)
        peak = max(peak, float(np.abs(x).max(initial=0)))
    return 20 * float(np.log10(peak))


def clipped_fraction(audio_T: Array) -> float:
    """Fraction of samples in runs of MIN_CLIPPED_RUN or more at full scale."""
    at_limit = np.abs(audio_T) >= FULL_SCALE
    change = np.flatnonzero(np.diff(np.concatenate([[False], at_limit, [False]]).astype(np.int8)))
    runs = change[1::2] - change[::2]
    return float(runs[runs >= MIN_CLIPPED_RUN].sum() / max(len(audio_T), 1))
