"""What an evaluation found: predictions of every image under every combination, and all figures made of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from core_utils.files import write_atomically
from core_utils.jsonable import jsonable
from imagenet_s import statistics
from imagenet_s.errors import ImagenetSError
from imagenet_s.shards import BadImage
from imagenet_s.statistics import Decomposition
from imagenet_s.summaries import Factor, Row, Summary

CHANGES = tuple(each.name for each in dataclasses.fields(statistics.LogitChange))
"""Names of the figures that are kept for each image and combination."""


@dataclass(frozen=True, eq=False)
class Result:
    """Predictions per image, from which every figure follows without another run.

    Attributes:
        decoders: of the grid.
        resizers: of the grid; combination k is decoder k // len(resizers), resizer k % len(resizers).
        reference: name of the reference, "decoder/resizer".
        predictions: class index, [combos, images]; the factors' rows follow the grid's.
        labels: class index, [images], or None when an image has none.
        images: their names.
        changes: changes of the logits against the reference by the names in CHANGES, each [combos, images].
        pixels: combinations with one number gave every image the same pixels.
        errors: images left out of every combination.
        versions: of the libraries that made the views.
        seed: of the bootstrap.
        complete: whether every image was evaluated.
        factors: what else was changed, each alone and at the reference.
        inapplicable: factors that the model has no place for, and why.
        flags: (name, what) of the images that are not plain JPEGs in 8-bit RGB: CMYK, 16-bit, truncated, ...
    """

    decoders: tuple[str, ...]
    resizers: tuple[str, ...]
    reference: str
    predictions: Int64[np.ndarray, "combos images"]
    labels: Int64[np.ndarray, " images"] | None
    images: tuple[str, ...]
    changes: Mapping[str, Float32[np.ndarray, "combos images"]]
    pixels: tuple[int, ...]
    errors: tuple[BadImage, ...]
    versions: Mapping[str, str]
    seed: int = 0
    complete: bool = True
    factors: tuple[str, ...] = ()
    inapplicable: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the combinations, and of the factors after them."""
        return (*(f"{left}/{right}" for left in self.decoders for right in self.resizers), *self.factors)

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracy by combination and factor, as a fraction.

        Raises:
            ImagenetSError: there are no labels.
        """
        if self.labels is None:
            raise ImagenetSError("accuracy needs a label for every image", "without labels there is disagreement")
        return self._by_name(statistics.accuracy(self.predictions, self.labels))

    @property
    def disagreement(self) -> dict[str, float]:
        """Share of predictions that are not the reference's, by combination and factor."""
        return self._by_name(statistics.disagreement(self.predictions, self._reference))

    def summary(self) -> Summary:
        """All figures of the evaluation; `print` it."""
        measured = self._measured()
        every = statistics.distinct(self.pixels, keep=[self._reference])
        chosen = [index for index in every if index < len(measured)]
        grid = self.predictions[: len(measured)]
        together = grid == (self.predictions[self._reference] if self.labels is None else self.labels)
        rows = self._rows(every)
        return Summary(
            n=len(self.images),
            errors=len(self.errors),
            reference=self.reference,
            measure="agreement" if self.labels is None else "accuracy",
            rows=rows,
            combinations=len(measured),
            distinct=len(chosen),
            spread=statistics.spread(measured[chosen]),
            factors={"decoder": self._factor(decoder=True), "resizer": self._factor(decoder=False)},
            consistent=float(together.all(axis=0).mean()),
            fooled=None if self.labels is None else statistics.fooled_rate(grid, self.labels, self._reference),
            smallest_drop=max(row.smallest_drop for row in rows),
            complete=self.complete,
            inapplicable=dict(self.inapplicable),
            flags=dict(Counter(what for _, what in self.flags)),
        )

    def decompose(self) -> Decomposition:
        """Main effects of decoder and resizer and their interaction, on accuracy, or on agreement without labels."""
        table = self._measured().reshape(len(self.decoders), len(self.resizers))
        return statistics.decompose(table, self.decoders, self.resizers)

    def to_json(self, path: str | Path | None = None) -> str:
        """The summary and the predictions of each image as JSON text; also written to `path`."""
        facts = {
            "summary": self.summary(),
            "decomposition": dataclasses.asdict(self.decompose()),
            "images": self.images,
            "labels": None if self.labels is None else self.labels.tolist(),
            "predictions": dict(zip(self.names, self.predictions.tolist(), strict=True)),
            "errors": self.errors,
            "flags": self.flags,
            "versions": self.versions,
            "seed": self.seed,
        }
        return _written(path, json.dumps(jsonable(facts), indent=1) + "\n")

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line a combination, as CSV text; also written to `path`."""
        content = io.StringIO()
        writer: Any = None
        for row in self.summary().rows:
            facts = dataclasses.asdict(row)
            low, high = facts.pop("interval") or (None, None)
            facts |= {"low": low, "high": high, **facts.pop("changes")}
            if writer is None:
                writer = csv.DictWriter(content, facts, lineterminator="\n")
                writer.writeheader()
            writer.writerow(facts)
        return _written(path, content.getvalue())

    def to_parquet(self, path: str | Path) -> None:
        """One row an image: its name, its label, and its prediction under each combination.

        Raises:
            ImagenetSError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ImagenetSError("writing Parquet needs pyarrow", 'pip install "imagenet-s[parquet]"') from None
        labels = pa.nulls(len(self.images), pa.int64()) if self.labels is None else pa.array(self.labels)
        columns = {"image": pa.array(self.images, pa.string()), "label": labels}
        columns |= {name: pa.array(row) for name, row in zip(self.names, self.predictions, strict=True)}
        facts = {"reference": self.reference, "complete": self.complete, "versions": dict(self.versions)}
        table = pa.table(columns).replace_schema_metadata({"imagenet-s": json.dumps(facts)})
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        write_atomically(Path(path), content.getvalue().to_pybytes())

    def plot(self, path: str | Path | None = None) -> str:
        """The grid as a heat map, SVG; also written to `path`."""
        from imagenet_s.plots import grid_figure

        measured = self._measured()
        lost = 100 * (measured[self._reference] - measured)
        worst = int(lost.argmax())
        n = len(self.images)
        if self.labels is None:
            claim, quantity = (
                f"{self.names[worst]} changes {lost[worst]:.1f} % of predictions",
                "predictions changed (%)",
            )
        else:
            claim, quantity = f"{self.names[worst]} loses {lost[worst]:.1f} points", "accuracy lost (points)"
        shape = len(self.decoders), len(self.resizers)
        svg = grid_figure(
            lost.reshape(shape),
            self.decoders,
            self.resizers,
            quantity=quantity,
            title=f"ImageNet-S (systematic noise): {claim}, n = {n}",
            marked=(self._reference // shape[1], self._reference % shape[1]),
        )
        return _written(path, svg)

    @property
    def _reference(self) -> int:
        return self.names.index(self.reference)

    def _by_name(self, values: Float64[np.ndarray, " combos"]) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def _measured(self) -> Float64[np.ndarray, " combos"]:
        """Accuracy, or agreement, of the grid's combinations; factors are not averaged with them."""
        grid = self.predictions[: len(self.decoders) * len(self.resizers)]
        if self.labels is None:
            return 1 - statistics.disagreement(grid, self._reference)
        return statistics.accuracy(grid, self.labels)

    def _rows(self, chosen: list[int]) -> tuple[Row, ...]:
        names, n = self.names, len(self.images)
        stands_for = {self.pixels[index]: names[index] for index in chosen}
        flips = (self.predictions != self.predictions[self._reference]).sum(axis=1)
        labelled: list[dict[str, Any]] = [
            dict.fromkeys(("accuracy", "drop", "interval", "fixed", "broken", "p_value", "p_holm")) for _ in names
        ]
        if self.labels is not None:
            churn = statistics.churn(self.predictions, self.labels, self._reference)
            tested = [index for index in chosen if index != self._reference]
            holm = dict(zip(tested, statistics.holm([churn[index].p_value for index in tested]), strict=True))
            by_group = {self.pixels[index]: p for index, p in holm.items()}
            drops = statistics.drop(self.predictions, self.labels, self._reference)
            for index, accuracy in enumerate(statistics.accuracy(self.predictions, self.labels)):
                each = churn[index]
                labelled[index] = {
                    "accuracy": float(accuracy),
                    "drop": float(drops[index]),
                    "interval": statistics.drop_interval(each.fixed, each.broken, n, seed=self.seed),
                    "fixed": each.fixed,
                    "broken": each.broken,
                    "p_value": each.p_value,
                    "p_holm": by_group.get(self.pixels[index], 1.0),
                }
        return tuple(
            Row(
                name=name,
                same_as=None if stands_for[self.pixels[index]] == name else stands_for[self.pixels[index]],
                disagreement=float(flips[index] / n),
                smallest_drop=statistics.smallest_detectable_drop(int(flips[index]), n),
                changes={
                    key: float(values[index].max() if key == "max_delta" else values[index].mean())
                    for key, values in self.changes.items()
                },
                **labelled[index],
            )
            for index, name in enumerate(names)
        )

    def _factor(self, *, decoder: bool) -> Factor:
        measured, (row, column) = self._measured(), divmod(self._reference, len(self.resizers))
        places = np.arange(len(measured)).reshape(len(self.decoders), len(self.resizers))
        line = (places[:, column] if decoder else places[row]).tolist()
        own = self.pixels[self._reference]
        others = [line[i] for i in statistics.distinct([self.pixels[k] for k in line]) if self.pixels[line[i]] != own]
        loss = statistics.spread(measured[self._reference] - measured[others]) if others else None
        names = self.decoders if decoder else self.resizers
        return Factor({name: float(measured[k]) for name, k in zip(names, line, strict=True)}, loss)


def _written(path: str | Path | None, text: str) -> str:
    if path is not None:
        write_atomically(Path(path), text)
    return text
