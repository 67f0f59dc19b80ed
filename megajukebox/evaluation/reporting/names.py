"""Names of figures in words that people read."""

import re

BAND = re.compile(r"band_0*(\d+)_0*(\d+)")
WORDS = {
    "snr": "SNR", "si_sdr": "SI-SDR", "stft_distance": "STFT distance", "dc": "DC", "frechet": "Fréchet distance",
    "loudness_lufs": "loudness", "word_error_ms": "error of word starts", "even_error_ms": "error if sung evenly",
    "forward_kl_bits": "forward KL", "reverse_kl_bits": "reverse KL", "true_peak": "true peak",
    "label_gain_bits": "gain of labels", "entropy_bits": "entropy",
}  # fmt: skip


def pretty(name: str) -> str:
    """`snr_db` -> SNR, `band_00250_00500` -> 250-500 Hz; units are said elsewhere."""
    if band := BAND.fullmatch(name):
        return f"{int(band[1])}-{int(band[2])} Hz"
    name = name.removesuffix("_db")
    return WORDS.get(name, name.replace("_", " "))


def column_name(column: str) -> str:
    return column.replace("_", " ").replace("/", " ")
