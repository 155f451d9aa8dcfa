"""A picture of a training stage: loss, validation loss and learning rate over its steps."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

from moaa_ray.data.store import Store


def put_curve(store: Store, stage: str, lines: Sequence[Mapping[str, Any]], note: Callable[[str], None]) -> bool:
    """Write metrics/<stage>.png; False, and a note, where the library that draws is missing or fails."""
    try:
        png = curve_png(lines, title=stage)
    except Exception as error:  # whatever a drawing library raises, the model that is done is worth more
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        note(f"{stage}: its curve is not drawn ({said}); metrics/{stage}.jsonl has every step")
        return False
    store.put(f"metrics/{stage}.png", png)
    return True


def curve_png(lines: Sequence[Mapping[str, Any]], *, title: str) -> bytes:
    """A PNG drawn from the lines of a metrics file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_margin = "margin" in lines[-1]
    figure = Figure(figsize=(8, 6 if has_margin else 4.5), layout="constrained")
    axes = figure.subplots(3 if has_margin else 2, 1, sharex=True, height_ratios=[3, 2, 1] if has_margin else [3, 1])
    steps = [line["step"] + 1 for line in lines]
    axes[0].plot(steps, [line["loss"] for line in lines], linewidth=1, label="loss")
    validated = [line for line in lines if "validation_loss" in line]
    if validated:
        at = [line["step"] + 1 for line in validated]
        axes[0].plot(at, [line["validation_loss"] for line in validated], "o-", markersize=3, label="validation loss")
    axes[0].set_ylabel("loss")
    axes[0].legend()
    if has_margin:
        axes[1].plot(steps, [line["accuracy"] for line in lines], linewidth=1, label="accuracy")
        axes[1].plot(steps, [line["longer_wins"] for line in lines], linewidth=1, label="the longer wins")
        axes[1].set_ylim(0, 1)
        axes[1].legend()
    axes[-1].plot(steps, [line["learning_rate"] for line in lines], linewidth=1, color="gray")
    axes[-1].set_ylabel("learning rate")
    axes[-1].set_xlabel("step")
    figure.suptitle(title)
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
