"""FedAvg on handwritten digits, as Flower's quickstarts have it."""
