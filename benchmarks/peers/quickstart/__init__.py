"""Logistic regression on MNIST in the shape of Flower's quickstarts, for `lr_mnist.py`."""
