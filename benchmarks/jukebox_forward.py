"""How fast our models are beside the original's; writes benchmarks/results/jukebox_forward.json and a table.

    python benchmarks/jukebox_forward.py                # everything, about four minutes on an idle machine
    python benchmarks/jukebox_forward.py --only prior   # or vqvae; the other's figures stay as they are

All figures are in CPU-seconds (`time.process_time`) of one thread, medians of a few repeats: a prior's are codes, a
VQ-VAE's are seconds of audio. A training step is forward, backward and AdamW. bfloat16 is `torch.autocast` with weights
in float32, its error that of one forward pass beside float32's. The original's figures, where there are any, were
measured the same way on a machine like this one: compare them roughly.
"""

import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from megajukebox.common.files import write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.config import load_preset

RESULT = Path(__file__).parent / "results" / "jukebox_forward.json"
PRECISIONS = {"float32": False, "bfloat16": True}  # whether autocast is on
REPEATS = 5  # after one that is not counted
RELEASED, LIKE_THE_ORIGINAL = "released", "width 512, depth 12"
# The original in CPU-seconds of one thread: lowest and highest of its runs.
ORIGINAL: dict[tuple[str, str], tuple[float, float]] = {
    (LIKE_THE_ORIGINAL, "train"): (810, 885),
    (RELEASED, "train"): (0.26, 0.33),
    (RELEASED, "encode all levels"): (1.3, 1.6),
    (RELEASED, "decode bottom"): (2.8, 3.1),
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Any of prior, vqvae.")] = None,
) -> None:
    """Measure the models."""
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in only or ("prior", "vqvae"):
        figures = {"prior": priors, "vqvae": vqvaes}[part]()
        results[part] = {"made": today(), "figures": figures}
        Console().print(table(part, figures))
        write_atomic(RESULT, (json.dumps(results, indent=1) + "\n").encode())


def today() -> dict[str, Any]:
    """When, on what, and of which code."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "name" in line
    ]
    known = {
        "machine": cpu[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        **known,
        "made_by": made_by(),
    }


def table(part: str, figures: list[dict[str, Any]]) -> Table:
    unit = {"prior": "codes", "vqvae": "audio-seconds"}[part]
    made = Table(title=f"{part}: {unit} a CPU-second of one thread")
    for column in ("size", "work", "precision", "ours", "the original's", "times", "error"):
        made.add_column(
            column,
            no_wrap=True,
            justify="left" if column in ("size", "work", "precision") else "right",
        )
    for row in figures:
        low, high = row.get("original", (None, None))
        told = (
            [f"{low:g}-{high:g}", f"{row['rate'] / high:.1f}-{row['rate'] / low:.1f}"]
            if low
            else ["", ""]
        )
        made.add_row(
            row["size"],
            row["work"],
            row["precision"],
            f"{row['rate']:.4g}",
            *told,
            row.get("error", ""),
        )
    return made


def measure(size: str, units: float, works: dict[str, Callable[[], Any]]) -> list[dict[str, Any]]:
    """A row for each work and precision; the precisions take turns, so a busy machine slows both alike."""
    rows = []
    for name, work in works.items():
        taken = [
            {precision: seconds(work, on) for precision, on in PRECISIONS.items()}
            for _ in range(REPEATS + 1)
        ]
        for precision in PRECISIONS:
            rates = sorted(units / times[precision] for times in taken[1:])
            row = {
                "size": size,
                "work": name,
                "precision": precision,
                "rate": statistics.median(rates),
            }
            row["slowest"], row["fastest"] = rates[0], rates[-1]
            rows.append(
                row | ({"original": ORIGINAL[size, name]} if (size, name) in ORIGINAL else {})
            )
    return rows


def seconds(work: Callable[[], Any], bfloat16: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        begun = time.process_time()
        work()
        return time.process_time() - begun


def trainer(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One step of training after another. The codebook is started first, so no repeat draws its vectors."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def step() -> None:
        optimizer.zero_grad()
        model.train()(batch)[0].backward()
        optimizer.step()

    step()
    return step


def note_error(rows: list[dict[str, Any]], work: str, error: str) -> None:
    next(row for row in rows if row["work"] == work and row["precision"] == "bfloat16")["error"] = (
        error
    )


def autocast(work: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return work()


# ---- Priors ----------------------------------------------------------------------------------------------------------


def priors() -> list[dict[str, Any]]:
    """No labels, lyrics or timing; 2048 codes, windows of 2048 in 32 rows, two at a time."""
    shapes = {
        "width 256, depth 6": (256, 6),
        LIKE_THE_ORIGINAL: (512, 12),
        "width 1024, depth 6": (1024, 6),
    }
    return [row for size, (width, depth) in shapes.items() for row in prior(size, width, depth)]


def prior(size: str, width: int, depth: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    shape = TransformerConfig(width=width, depth=depth, heads=2, blocks=32)
    model = Prior(
        PriorConfig(
            level="top",
            sample_rate=44100,
            hop=128,
            codebook_size=2048,
            window=2048,
            transformer=shape,
        )
    )
    batch = {"codes": torch.randint(2048, (2, 2048))}

    @torch.inference_mode()
    def logits() -> Tensor:
        return model.logits(batch["codes"], model.conditioning(batch))

    exact, rounded = logits(), autocast(logits)
    rows = measure(
        size, batch["codes"].numel(), {"train": trainer(model, batch), "forward": logits}
    )
    note_error(
        rows, "forward", f"{float((rounded - exact).norm() / exact.norm()):.1e} of the logits"
    )
    return rows


# ---- VQ-VAEs ---------------------------------------------------------------------------------------------------------


def vqvaes() -> list[dict[str, Any]]:
    """One clip of 1.5 s at a time: three tones and noise. The weights are random, and so is what the errors say."""
    sizes = {"tiny": "tiny", RELEASED: "jukebox_5b"}
    return [row for size, preset in sizes.items() for row in vqvae(size, load_preset(preset).vqvae)]


def vqvae(size: str, config: VQVAEConfig) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model, top = VQVAE(config), max(config.hops.values())
    length = int(1.5 * config.sample_rate) // top * top
    t = torch.arange(length) / config.sample_rate
    audio = (0.2 * torch.sin(2 * torch.pi * torch.tensor([[220.0], [550.0], [1210.0]]) * t).sum(0))[
        None, :, None
    ]
    audio = audio + 0.02 * torch.randn_like(audio)
    rows = measure(size, length / config.sample_rate, {"train": trainer(model, {"audio": audio})})
    model.eval()

    @torch.inference_mode()
    def encode() -> Tensor:
        return torch.cat([model.encode(audio, level).flatten() for level in config.levels])

    codes = model.encode(audio, "bottom")

    @torch.inference_mode()
    def decode() -> Tensor:
        return model.decode(codes, "bottom").float()

    rows += measure(
        size, length / config.sample_rate, {"encode all levels": encode, "decode bottom": decode}
    )
    note_error(
        rows,
        "encode all levels",
        f"{float((encode() != autocast(encode)).float().mean()):.1%} other codes",
    )
    noise = (autocast(decode) - decode()).norm() / decode().norm()
    note_error(rows, "decode bottom", f"{float(20 * torch.log10(noise)):.0f} dB noise")
    return rows


if __name__ == "__main__":
    typer.run(main)
