"""Plots that several verbs draw, all for files: colours that the colour-blind can tell apart, one way to save."""

from pathlib import Path

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito: colour-blind safe


def pyplot():
    """matplotlib's interface, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure, path: Path):
    figure.savefig(path, dpi=110)
    pyplot().close(figure)


def plot_curves(path: Path, stage: str, runs: list, keys: list[str], known: list[str]):
    """A panel per key over the epochs. runs: [(experiment, lines of metrics.jsonl)], a colour per one of `known`."""
    plt = pyplot()
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in runs))
    style = {name: {"color": COLOURS[i % len(COLOURS)], "ls": ("-", "--", ":")[i // len(COLOURS) % 3]}
             for i, name in enumerate(known)}
    for axis, key in zip(axes.flat, keys, strict=False):
        for name, metrics in runs:
            points = [(line["epoch"], line[key]) for line in metrics if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), lw=1.2, marker="." if len(points) < 3 else "", **style[name])
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(keys):]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("epoch", fontsize=8)
    handles = [plt.Line2D([], [], **style[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=8)
    figure.suptitle(stage, fontsize=10)
    save(figure, path)


def per_class(matrix):
    """Accuracy of each class in %, unreadable videos being wrong; NaN of a class without videos. (C, C + 1) -> (C,)"""
    return 100 * matrix.diagonal() / matrix.sum(1)


def plot_confusion(path: Path, matrix, classes: list[str], title: str):
    """matrix (C, C + 1): how many videos of a class were taken for which, the unreadable in the last column."""
    plt, C = pyplot(), len(classes)
    share = (100 * matrix / matrix.sum(1, keepdim=True)).nan_to_num().numpy()  # (C, C + 1)
    names = [*classes, *(["unreadable"] if matrix[:, C].any() else [])]
    side = min(15, max(4.5, 0.16 * C + 2))
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    norm = plt.matplotlib.colors.PowerNorm(0.5, 0, 100)  # what is seldom is to be seen, too
    image = axis.imshow(share[:, : len(names)], cmap="Blues", norm=norm)
    size = 8 if C <= 20 else 5
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(C), classes, fontsize=size)
    axis.set(xlabel="taken for", ylabel="class")
    if C <= 12:
        for i, row in enumerate(share[:, : len(names)].tolist()):
            for j, value in enumerate(row):
                if value:
                    colour = "w" if value > 40 else "k"
                    axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, shrink=0.6, label="% of the class's videos")
    axis.set_title(title, fontsize=9, wrap=True)
    save(figure, path)


def plot_gain(path: Path, gain, classes: list[str], title: str):
    """A bar per class, sorted. gain (C,): points of accuracy, NaN of a class without videos."""
    plt, order = pyplot(), gain.nan_to_num().argsort().tolist()
    figure, axis = plt.subplots(figsize=(7, max(2.5, 0.17 * len(classes) + 1.2)), layout="constrained")
    values = [gain[c].item() for c in order]
    axis.barh([classes[c] for c in order], values, color=[COLOURS[0] if v >= 0 else COLOURS[1] for v in values])
    axis.axvline(0, color="0.3", lw=0.8)
    mid = gain.nanmean().item()
    axis.axvline(mid, color="0.3", lw=1, ls="--", label=f"mean of the classes {mid:+.1f}")
    axis.legend(fontsize=8, loc="lower right")
    axis.set_xlabel("points", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.margins(y=0.01)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(title, fontsize=9, wrap=True)
    save(figure, path)
