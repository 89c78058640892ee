"""Images and labels by name, as arrays. No torch: `assay run --dry-run` looks here for what is missing."""

import gzip
import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from assay.core.errors import ConfigError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CHANNELS = 4
FOLDERS = ("fashion-mnist", "cifar10")
"""Sets that lie in the data folder under these names."""


def read(name: str, data_dir: Path | None) -> dict[str, np.ndarray]:
    """x_train [N, H, W] or [N, H, W, C] (any numbers), y_train [N], and the same for test.

    Args:
        name: digits, fashion-mnist, cifar10, hub:NAME, or the path of an .npz.
        data_dir: The data folder, if there is one.

    Raises:
        ConfigError: It is not there, or is no set of images and labels.
    """
    if name == "digits":
        arrays = _digits()
    elif name.startswith("hub:"):
        arrays = _hub(name.removeprefix("hub:"))
    else:
        path = locate(name, data_dir)
        readers = {"fashion-mnist": _fashion, "cifar10": _cifar}
        arrays = readers.get(name, _npz)(path)
    _check(name, arrays)
    return arrays


def locate(name: str, data_dir: Path | None) -> Path:
    """Where a set in the data folder lies, or the file of an .npz.

    Raises:
        ConfigError: There is none.
    """
    if name.endswith(".npz"):
        for path in (Path(name), *([] if data_dir is None else [data_dir / name])):
            if path.is_file():
                return path
        raise ConfigError(
            f"Data {name!r} must be a file, here or in the data folder; ASSAY_DATA is {data_dir or 'not set'}. "
            'Correct the path, or take data = "digits", which is on every machine.'
        )
    if name not in FOLDERS:
        raise ConfigError(
            f"data must be ladder, digits, {', '.join(FOLDERS)}, hub:NAME or a path that ends in .npz; got "
            f"{name!r}."
        )
    for folder in [] if data_dir is None else [data_dir / name, data_dir / "data" / name]:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"Data {name!r} must be a folder of the data folder; ASSAY_DATA is {data_dir or 'not set'}. Set it "
        'to the folder that holds it, or take data = "digits", which is on every machine.'
    )


def sha256_of(name: str, data_dir: Path | None) -> str:
    """Digest of the files that are read; of the arrays where there are none."""
    digest = hashlib.sha256()
    if name == "digits" or name.startswith("hub:"):
        arrays = read(name, data_dir)
        for key in ARRAYS:
            digest.update(np.ascontiguousarray(arrays[key]).tobytes())
        return digest.hexdigest()
    path = locate(name, data_dir)
    # Notes that lie beside the data are not data.
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*.gz")])
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _check(name: str, arrays: dict[str, np.ndarray]) -> None:
    shapes = {key: arrays[key].shape for key in ARRAYS}
    for which in ("train", "test"):
        x, y = arrays[f"x_{which}"], arrays[f"y_{which}"]
        same = x.shape[1:] == arrays["x_train"].shape[1:]
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or len(x) < 10 or not same:
            raise ConfigError(
                f"Data {name!r} must have x_train [N, …], y_train [N], x_test [M, …], y_test [M] with "
                f"images of one size and at least 10 of each; x_{which} or y_{which} is not so: {shapes}. Save them so."
            )
        if x.ndim == 4 and x.shape[-1] > MOST_CHANNELS:
            raise ConfigError(
                f"Images of data {name!r} must have their channels last, [N, height, width, channels], at most "
                f"{MOST_CHANNELS}; x_{which} is {list(x.shape)}. Save x.transpose(0, 2, 3, 1) if they come first."
            )
        is_whole = np.issubdtype(y.dtype, np.integer)
        if not is_whole or y.min() < 0:
            least = f" from {y.min()}" if is_whole else ""
            raise ConfigError(
                f"Labels of data {name!r} must be whole numbers from 0; y_{which} is {y.dtype}{least}. Save "
                "the classes' numbers, as integers."
            )
        if y.max() >= len(x):
            raise ConfigError(
                f"Labels of data {name!r} must number its classes from 0; y_{which} has {y.max()}, and {len(x)} images. "
                "Give the classes numbers without gaps."
            )
        if x.dtype.kind not in "biuf":
            raise ConfigError(
                f"Inputs of data {name!r} must be numbers; x_{which} is {x.dtype}. Save numbers."
            )
        whole = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        if not whole.all():
            bad = np.flatnonzero(~whole)
            raise ConfigError(
                f"Inputs of data {name!r} must be finite numbers; {len(bad)} samples of x_{which} have others, the first "
                f"is number {bad[0]}. Mend those samples, or take them away."
            )
    unseen = np.setdiff1d(arrays["y_test"], arrays["y_train"])
    if len(unseen):
        raise ConfigError(
            f"y_test of data {name!r} must hold classes that y_train has; it has {unseen[:5].tolist()} besides. Take "
            "those samples away, or split the samples anew."
        )


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits  # noqa: PLC0415

    found = load_digits()
    x, y = found.images, found.target
    # In the order of the set, whose last part was written by other people.
    at = len(x) - 450
    return dict(zip(ARRAYS, (x[:at], y[:at], x[at:], y[at:]), strict=True))


def _fashion(folder: Path) -> dict[str, np.ndarray]:
    def idx(name: str, start: int) -> np.ndarray:
        with gzip.open(folder / name) as file:
            return np.frombuffer(file.read()[start:], np.uint8)

    try:
        return {
            "x_train": idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            "y_train": idx("train-labels-idx1-ubyte.gz", 8),
            "x_test": idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            "y_test": idx("t10k-labels-idx1-ubyte.gz", 8),
        }
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(
            f"Data 'fashion-mnist' in {folder} cannot be read: {error}. Copy it again."
        ) from error


def _cifar(folder: Path) -> dict[str, np.ndarray]:
    import polars  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    found = {}
    for which in ("train", "test"):
        paths = sorted(folder.glob(f"{which}-*.parquet"))
        if not paths:
            raise ConfigError(
                f"Data 'cifar10' needs {which}-*.parquet in {folder}; there is none. Copy the whole set there, or take "
                "hub:NAME."
            )
        try:
            table = polars.concat([polars.read_parquet(path) for path in paths])
            content = table["img"].struct.field("bytes").to_list()
            pictures = [np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in content]
            labels = table["label"].to_numpy()
        except (polars.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"Data 'cifar10' in {folder} cannot be read: {error}. Copy it again."
            ) from error
        sizes = sorted({each.shape for each in pictures})
        if len(sizes) > 1:
            raise ConfigError(
                f"Images of {which}-*.parquet in {folder} must be of one size; there are {sizes[:3]}. Copy the set again."
            )
        found[f"x_{which}"], found[f"y_{which}"] = np.stack(pictures), labels
    return found


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ARRAYS}
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ConfigError(
            f"Data {str(path)!r} must be an .npz with {', '.join(ARRAYS)}, as numpy.savez writes it; it cannot be read "
            f"so ({type(error).__name__}: {str(error).partition('. ')[0]}). Write it anew, with plain arrays."
        ) from error


def _hub(name: str) -> dict[str, np.ndarray]:
    try:
        import datasets  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"Data 'hub:{name}' needs the library `datasets`, which is not installed: pip install datasets."
        ) from error
    found = {}
    try:
        whole = datasets.load_dataset(name)
        for which in ("train", "test"):
            part = whole[which]
            image = "img" if "img" in part.column_names else "image"
            found[f"x_{which}"] = np.stack([np.asarray(each) for each in part[image]])
            found[f"y_{which}"] = np.asarray(part["label"])
    except Exception as error:
        raise ConfigError(
            f"Data 'hub:{name}' must be a data set of the hub with parts train and test, and columns label and img or "
            f"image of images of one size: {type(error).__name__}: {' '.join(str(error).split())} Give another, or look "
            "whether this machine may reach the hub."
        ) from error
    return found
