"""AHFAL: federated active learning on Flower.

Importing the package is cheap: nothing here imports torch or Flower.
"""

__version__ = "0.1.0"
