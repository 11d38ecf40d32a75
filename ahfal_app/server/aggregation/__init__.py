"""How the clients' models become the next global model: one of Flower's strategies, by name.

Flower's classes compute; this package decides what they are given, under cycles of rounds:

- **FedAvg** and **FedProx** average everything floating, batch-norm means and variances
  included, as the AHFAL paper's experiments do. FedProx differs in the clients' loss alone.
- **Server optimisers** (FedAvgM, FedAdam, FedAdagrad, FedYogi) step on trainable parameters
  only. They extrapolate, and a variance that is extrapolated can become negative, so running
  means and variances are averaged by FedAvg instead. Which arrays are trainable is told by
  name, from the model.
- **Robust methods** (median, trimmed mean, Krum, Multi-Krum, Bulyan) act on everything
  floating, since a client can spoil a model through its running statistics just as well. They
  are given float64: in float32, squared distances of models lose the digits that count, and
  those of a malicious one overflow.
- **Integer counters** (`num_batches_tracked`) have no mean that is an integer: the largest
  is taken, whatever the method.

`docs/aggregation.md` tells what each name does and which settings belong to it.
"""

from ahfal_app.server.aggregation.core.aggregation import Aggregation
from ahfal_app.server.aggregation.core.answers import NO_LABELS, Limits, problem_with
from ahfal_app.server.aggregation.core.requirements import (
    clients_in_a_round,
    make_aggregation,
    shortage,
)

__all__ = [
    "NO_LABELS",
    "Aggregation",
    "Limits",
    "clients_in_a_round",
    "make_aggregation",
    "problem_with",
    "shortage",
]
