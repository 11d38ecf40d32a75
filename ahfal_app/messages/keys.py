"""Names of the records in a message, and of what Flower's strategies read in them."""

from __future__ import annotations

#: The record of a message with the server's orders, or with what a client tells of itself.
CONFIG_KEY = "config"

#: The record with a model's arrays.
ARRAYS_KEY = "arrays"

#: The record with what the file of a model says of it.
MODEL_KEY = "model"

#: In the answer to a model: whether the site has kept it.
KEPT_KEY = "kept"

#: The record with numbers that a client answers.
METRICS_KEY = "metrics"

#: The record with the class statistics.
STATISTICS_KEY = "statistics"

#: The record with the labels that a client is granted.
BUDGET_KEY = "budget"

#: The record with the purchases of a client that the server knows of.
PURCHASES_KEY = "purchases"

#: In the metrics of `train`: labelled samples that the client has trained on.
WEIGHT_KEY = "num-examples"

#: In the metrics of `train`: mean loss of the client's last local epoch.
LOSS_KEY = "loss"

#: The record with what the query strategy's half at the server tells all clients.
POLICY_KEY = "policy"

#: The record with what a client tells it of a choice.
REPORT_KEY = "report"

#: The record that says which steps of a coordination a message is about.
COORDINATION_KEY = "coordination"

#: The record with the arrays of these steps, or of the answer to the last one.
QUESTIONS_KEY = "questions"
