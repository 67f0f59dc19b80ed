"""What a mastering engineer looks at first: loudness (ITU-R BS.1770-4), peaks, clipping, silence, DC."""

# T samples   N blocks of 400 ms
from collections.abc import Mapping

import numpy as np

Array = np.ndarray
BLOCK, STEP = 0.4, 0.1  # seconds: gating blocks overlap by 75 %
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
SILENCE = -60.0  # LUFS of a block
FULL_SCALE = 0.999  # 16 bits hold 32767/32768; what lies above is taken for the limit itself
STUCK = 3  # samples in a row at full scale that count as clipping: one or two are the top of a loud wave


def sound(audio_T: Array, rate: int) -> Mapping[str, float]:
    """The measures of one mono recording."""
    power_N = block_power(weighted(audio_T, rate), rate)
    return {
        "loudness_lufs": gated(power_N),
        "true_peak_db": true_peak(audio_T),
        "clipped": clipped(audio_T),
        "silent": float((lufs(power_N) < SILENCE).mean()),
        "dc": float(abs(audio_T.mean(dtype=np.float64))) if len(audio_T) else 0.0,
    }


def lufs(power: Array | float) -> Array:
    """-0.691 + 10 log10 of mean square: one channel of weight 1."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def gated(power_N: Array) -> float:
    """Integrated loudness: the mean power of the blocks above -70 LUFS and above 10 LU below their own mean."""
    loud = power_N[lufs(power_N) > ABSOLUTE_GATE]
    if not len(loud):
        return ABSOLUTE_GATE
    return float(lufs(loud[lufs(loud) > lufs(loud.mean()) + RELATIVE_GATE].mean()))


def block_power(x_T: Array, rate: int) -> Array:
    """[N] mean square of blocks of 400 ms, 100 ms apart; a shorter recording is one block."""
    size, step = round(BLOCK * rate), round(STEP * rate)
    total = np.concatenate([[0.0], np.cumsum(x_T.astype(np.float64) ** 2)])
    starts = np.arange(0, max(len(x_T) - size, 0) + 1, step)
    ends = np.minimum(starts + size, len(x_T))
    return (total[ends] - total[starts]) / np.maximum(ends - starts, 1)


def weighted(audio_T: Array, rate: int) -> Array:
    """The recording through the K weighting, by its gain at each frequency.

    BS.1770 gives the filters as recursions at 48 kHz. Applied as a gain to the whole spectrum they need no filter
    design for other rates: the gain of the 48 kHz filters at the same frequency is that of the standard. Power does not
    depend on phase.
    """
    if not len(audio_T):
        return audio_T
    size = 2 ** int(
        np.ceil(np.log2(len(audio_T) + rate))
    )  # a second of silence: the end must not wrap round
    spectrum = np.fft.rfft(audio_T, size) * k_gain(np.fft.rfftfreq(size, 1 / rate))
    return np.fft.irfft(spectrum, size)[: len(audio_T)]


def k_gain(hertz: Array) -> Array:
    """|H| of the two filters of BS.1770-4, tables 1 and 2: the head's shelf, and the high pass."""
    z = np.exp(-2j * np.pi * np.minimum(hertz, 23_999) / 48_000)
    shelf_b, shelf_a = (
        (1.53512485958697, -2.69169618940638, 1.19839281085285),
        (1, -1.69065929318241, 0.73248077421585),
    )
    shelf, high_pass = (
        quotient(shelf_b, shelf_a, z),
        quotient((1, -2, 1), (1, -1.99004745483398, 0.99007225036621), z),
    )
    return np.abs(shelf * high_pass)


def quotient(b: tuple[float, ...], a: tuple[float, ...], z: Array) -> Array:
    return np.polyval(b[::-1], z) / np.polyval(a[::-1], z)


def true_peak(audio_T: Array) -> float:
    """dB of the highest point between samples, by fourfold oversampling; -120 for silence."""
    peak, piece = 1e-6, 1 << 16
    for start in range(0, len(audio_T), piece):
        x = audio_T[max(0, start - 64) : start + piece + 64].astype(
            np.float64
        )  # neighbours, to hide the piece's ends
        spectrum = np.fft.rfft(x * edges(len(x)))
        peak = max(peak, float(np.abs(np.fft.irfft(spectrum, 4 * len(x))).max(initial=0)) * 4)
        peak = max(peak, float(np.abs(x).max(initial=0)))
    return 20 * float(np.log10(peak))


def edges(size: int) -> Array:
    """1 with ends that fade over 32 samples: a jump between them would ring."""
    fade = np.ones(size)
    ramp = np.linspace(0, 1, 32)[: size // 2]
    fade[: len(ramp)], fade[size - len(ramp) :] = ramp, ramp[::-1]
    return fade


def clipped(audio_T: Array) -> float:
    """Share of samples in runs of three or more at the same full scale."""
    at_limit = np.abs(audio_T) >= FULL_SCALE
    change = np.flatnonzero(np.diff(np.concatenate([[False], at_limit, [False]]).astype(np.int8)))
    runs = change[1::2] - change[::2]
    return float(runs[runs >= STUCK].sum() / max(len(audio_T), 1))
