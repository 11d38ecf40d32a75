"""Aggregations written from their papers' equations, one value or client at a time.

Models are dictionaries of float64 arrays; nothing of Flower or of the product is used. Where
Flower departs from a paper, so does this, and says so.
"""

from __future__ import annotations

import math

import numpy as np

Model = dict[str, np.ndarray]


def mean(models: list[Model], weights: list[int]) -> Model:
    """McMahan et al. 2017, algorithm 1."""
    total = sum(weights)
    pairs = list(zip(models, weights, strict=True))
    return {
        name: sum(model[name] * weight / total for model, weight in pairs) for name in models[0]
    }


class ServerOptimizer:
    """Steps of the server from model to model; `delta` is what the clients moved it by."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.round = 0
        self.first: Model = {}
        self.second: Model = {}

    def step(self, current: Model, models: list[Model], weights: list[int]) -> Model:
        self.round += 1
        average = mean(models, weights)
        return {name: x + self.move(name, average[name] - x) for name, x in current.items()}

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Momentum(ServerOptimizer):
    """FedAvgM; Hsu, Qi and Brown 2019: v = beta v + delta, x = x + rate v."""

    beta = 0.9

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        self.first[name] = self.beta * self.first.get(name, 0.0) + delta
        return self.rate * self.first[name]


class Adagrad(ServerOptimizer):
    """FedAdagrad; Reddi et al. 2021, algorithm 2. Flower starts the second moment at 0."""

    tau = 1e-3

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        self.second[name] = self.second.get(name, 0.0) + delta**2
        return self.rate * delta / (np.sqrt(self.second[name]) + self.tau)


class Adam(ServerOptimizer):
    """FedAdam; with Flower's correction of the bias, whose exponents are a round ahead."""

    beta_1, beta_2, tau = 0.9, 0.99, 1e-3

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        first = self.beta_1 * self.first.get(name, 0.0) + (1 - self.beta_1) * delta
        second = self.beta_2 * self.second.get(name, 0.0) + (1 - self.beta_2) * delta**2
        self.first[name], self.second[name] = first, second
        exponent = self.round + 1
        rate = self.rate * (1 - self.beta_2**exponent) ** 0.5 / (1 - self.beta_1**exponent)
        return rate * first / (np.sqrt(second) + self.tau)


class Yogi(ServerOptimizer):
    """FedYogi; without a correction of the bias."""

    beta_1, beta_2, tau = 0.9, 0.99, 1e-3

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        first = self.beta_1 * self.first.get(name, 0.0) + (1 - self.beta_1) * delta
        second = self.second.get(name, np.zeros_like(delta))
        second = second - (1 - self.beta_2) * delta**2 * np.sign(second - delta**2)
        self.first[name], self.second[name] = first, second
        return self.rate * first / (np.sqrt(second) + self.tau)


def by_value(models: list[Model], combine) -> Model:
    """Combine the clients' values of each single parameter."""
    result = {}
    for name, array in models[0].items():
        result[name] = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            result[name][index] = combine([float(model[name][index]) for model in models])
    return result


def median_of(values: list[float]) -> float:
    """Yin et al. 2018, definition 1."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def trimmed_mean_of(values: list[float], cut: int) -> float:
    """Yin et al. 2018, definition 2."""
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def krum_order(models: list[Model], malicious: int) -> list[int]:
    """Blanchard et al. 2017, section 4: clients by their distance to the n - f - 2 nearest."""
    scores = []
    for i, model in enumerate(models):
        distances = sorted(
            sum(float(((model[name] - other[name]) ** 2).sum()) for name in model)
            for j, other in enumerate(models)
            if j != i
        )
        scores.append(sum(distances[: max(1, len(models) - malicious - 2)]))
    return sorted(range(len(models)), key=lambda i: scores[i])


def bulyan(models: list[Model], malicious: int) -> Model:
    """El Mhamdi et al. 2018, section 4; Flower selects all by one ranking, not one by one."""
    wanted = len(models) - 2 * malicious
    chosen = [models[i] for i in krum_order(models, malicious)[:wanted]]

    def nearest_to_median(values: list[float]) -> float:
        middle = median_of(values)
        nearest = sorted(values, key=lambda value: abs(value - middle))
        nearest = nearest[: wanted - 2 * malicious]
        return sum(nearest) / len(nearest)

    return by_value(chosen, nearest_to_median)


def norm_clipped(current: Model, models: list[Model]) -> Model:
    """Sun et al. 2019, section 4, array by array and at the median length of the moves."""
    result = {}
    for name, start in current.items():
        lengths = []
        for model in models:
            lengths.append(math.sqrt(sum(float(d) ** 2 for d in np.ravel(model[name] - start))))
        ordered = sorted(lengths)
        middle = len(ordered) // 2
        bound = ordered[middle]
        if len(ordered) % 2 == 0:
            bound = (ordered[middle - 1] + ordered[middle]) / 2
        moved = np.zeros_like(start)
        for model, length in zip(models, lengths, strict=True):
            share = 1.0 if length <= bound else bound / length
            moved = moved + share * (model[name] - start)
        result[name] = start + moved / len(models)
    return result
